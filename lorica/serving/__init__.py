"""A model behind HTTP: images in, classes out, and a page for people. Needs the extra `lorica[serve]`.

model      what is asked of a model
uploads    images out of a request, in memory, within limits
guard      who is answered, and what browsers are told
app        the endpoints
server     the socket they are behind
page/      what a browser is given; all of it is here, and nothing comes from another host
"""
