"""Methods x seeds x settings: settings chosen on training data that is held out, then a table of all seeds on test
data.

plan     the file of a sweep, read and checked
board    what is to be done, what is done, and who is at what: Optuna's studies, and a lock for each trial
worker   a process that takes one trial after the other
page     what was chosen, and the table
"""
