"""A model that goes on learning: classes and images, or texts, come whenever they come, and any earlier version can be
gone back to.

    learner = Learner("birds", backbone="vit_base_patch16_224.augreg_in21k")
    learner.learn("photos/may")          # a folder for each class: new ones, more images of old ones, or both
    learner.predict(["who.jpg"])
    learner.rollback(1)

A model is a folder. It holds a recipe as a run does, and each change is one line in the journal of its checkpoints
(`lorica.checkpoint`), written last: a process that is killed leaves the model as it was. A change that is a task is
learned by the same session as a run's (`lorica.session`), so that the same tasks give the same weights to the bit.
Going back adds a line too, and nothing is lost by it.

Of each class a few images are set aside, as small as the backbone reads them, and never trained on. Old classes are
judged by them before a change counts; probabilities and what is unknown are fitted to them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ValidationError
from torch import Tensor

from lorica.arrivals import Arrival, arrivals_of
from lorica.assembly import build_model, build_reader, machine_facts, saved_recipe, unsuited
from lorica.backbones import load_backbone, modality_of
from lorica.calibration import Calibration
from lorica.calibration import fit as calibrated
from lorica.checkpoint import Checkpoints
from lorica.config import FREE, IN_MEMORY, KEEP, Recipe, read_recipe
from lorica.data.reader import Reader
from lorica.data.sources.base import alike_remark, likeness, nearly_alike, remarks, some
from lorica.data.stream import Split
from lorica.descent import Fit
from lorica.environment import environment
from lorica.errors import CheckpointError, DataError, LoricaError, RegressionError
from lorica.evaluation import plain_form
from lorica.files import RunFolder, refusals, without_empty, write_json, write_text
from lorica.interruption import Interruptions
from lorica.isolation import isolated
from lorica.journal import Change, line_of_descent
from lorica.judging import (
    Album,
    Allowed,
    Jury,
    Moved,
    forgotten_after,
    inputs_of,
    kept_form,
    require_bounds,
    right,
)
from lorica.launch import require_alone
from lorica.methods import Method, build_method
from lorica.nested import flatten
from lorica.ownership import recipe_text, require_ours, wrote
from lorica.parts import Parts, taken_up
from lorica.predictor import Answer, Predictor
from lorica.progress import Reporter, Silent, progress_bar
from lorica.reading import WIDER, misfits, read_json
from lorica.recipe_text import parse
from lorica.session import Session
from lorica.types import Task, Tokens
from lorica.versions import Version, history_of, note_of

UNDOABLE = 2
"""Versions from which the model can learn on, if `checkpoints` is not "everything": the newest, and the one before."""

_PRECISIONS = ("fp32", "bf16")
_NOT_OF_A_RECIPE = ("folder", "recipe", "precision", "keep", "forgettable", "method_file")
_NUMBER = re.compile("0|-?[1-9][0-9]{0,17}")


class _Settings(BaseModel):
    """The contents of model.json.

    Attributes:
        labels: what the first labels were.
        recipe: hash of what recipe.yaml says, but for keys that may change: what tells that one of the two has been
            altered.
        forgettable: see `Learner`.
    """

    model_config = WIDER

    format: Literal[1]
    labels: Literal["names", "numbers"]
    recipe: str
    forgettable: bool


class Learner:
    """A model in a folder, which learns, predicts, and goes back.

    Args:
        folder: where it is, or is to be; absent = in memory, until `save`.
        recipe: what a new model is made by: a packaged recipe's name, a YAML file or a mapping. Data and stream play no
            part.
        device: where it computes; absent = as its recipe says.
        precision: how it computes; absent = as its recipe says.
        keep: images of each class to set aside, see `lorica.config.KEEP`; 0 keeps none.
        forgettable: of a new model: keep what `forget` needs to take single classes out of sums (`lorica.parts`), up to
            8 bytes a feature for each image, which say almost what the images' features do. Absent = no.
        method_file: the `.py` file of the method, where it has one; no file is executed that is not named here.
        settings: keys that replace the recipe's, as for `lorica.run`: `backbone="vit_small_patch16_224"`,
            `method={"rank": 4}`, `**{"fit.epochs": 3}`. A model that is there keeps its own; of it, only where its
            weights are may be given.

    Raises:
        LoricaError: settings that are not valid, or not those of the model in the folder.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        recipe: Recipe | str | Path | Mapping[str, Any] = "own_images",
        device: str | None = None,
        precision: Literal["fp32", "bf16"] | None = None,
        keep: int = KEEP,
        forgettable: bool | None = None,
        method_file: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if precision not in (None, *_PRECISIONS):
            raise LoricaError(f"precision: expected {' or '.join(_PRECISIONS)}, got {precision!r}")
        self._given: dict[str, Any] = {
            "folder": folder,
            "recipe": recipe,
            "device": device,
            "precision": precision,
            "keep": keep,
            "forgettable": forgettable,
            "method_file": method_file,
        }
        self._given |= settings
        self._temporary = tempfile.mkdtemp(prefix="lorica-") if folder is None else None
        if self._temporary:
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        self.folder = RunFolder(self._temporary or folder or "")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise LoricaError(f"keep: expected a number of samples from 0 on, got {keep!r}")
        self._keep = keep
        self._forgettable = bool(forgettable)
        self._predictor: Predictor | None = None
        self._learning, self._loading = threading.Lock(), threading.Lock()
        self._recipe = self._read_recipe()
        _ = self.checkpoints.entries  # it is whole

    # --- predictions ---

    @property
    def predictor(self) -> Predictor:
        """What predicts now, loaded when it is asked for first; one that was asked for earlier goes on as it was.

        Raises:
            LoricaError: nothing has been learned yet, or files of the present version are damaged.
        """
        with self._loading:
            if self._predictor is None:
                if not self.checkpoints.tasks:
                    raise LoricaError(
                        f"{self._where()}: has learned nothing yet; give it {self.things} with their classes: learn"
                    )
                self._predictor = self._load(None)
            return self._predictor

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that it predicts, in the order of its logits; none before it has learned."""
        return self.predictor.class_names if self.checkpoints.tasks else ()

    @property
    def classes_(self) -> np.ndarray:
        """The same as scikit-learn has them: numbers, if the first labels that it was given were numbers."""
        return self._labels(self.class_names)

    @property
    def method(self) -> Method:
        """The method that the predictor uses."""
        return self.predictor.method

    @property
    def reader(self) -> Reader:
        """The reader that the predictor uses."""
        return self.predictor.reader

    def logits(self, images: Any, *, batch_size: int = 256) -> Float[Tensor, "n classes"]:
        """See `Predictor.logits`."""
        return self.predictor.logits(images, batch_size=batch_size)

    def predict(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """The class of each image, an array as `classes_`; images as in `logits`."""
        now = self.predictor
        return self._labels(now.predict(images, batch_size=batch_size))

    def predict_proba(self, images: Any, *, batch_size: int = 256) -> Float[np.ndarray, "n classes"]:
        """See `Predictor.predict_proba`."""
        return self.predictor.predict_proba(images, batch_size=batch_size)

    def classify(self, images: Any, *, batch_size: int = 256) -> list[Answer]:
        """See `Predictor.classify`."""
        return self.predictor.classify(images, batch_size=batch_size)

    def score(self, images: Any, labels: Any) -> float:
        """Accuracy on these images, a fraction."""
        found, expected = self.predict(images), np.asarray(labels)
        if expected.shape != found.shape:
            raise DataError(f"labels: expected one for each of {len(found)} images, got shape {list(expected.shape)}")
        return float(np.mean(found.astype(str) == expected.astype(str)))

    def merged_model(self) -> torch.nn.Module:
        """See `Predictor.merged_model`."""
        return self.predictor.merged_model()

    # --- what it is ---

    @property
    def things(self) -> str:
        """What it learns: images or texts."""
        return modality_of(self._recipe.backbone.name)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints in the folder, read anew."""
        return Checkpoints(self.folder.checkpoints, undoable=UNDOABLE)

    def history(self) -> list[Version]:
        """Every version, the first one first.

        Raises:
            LoricaError: the journal is damaged.
        """
        return history_of(self.checkpoints)

    def predictor_of(self, version: int) -> Predictor:
        """What predicts as the model did after that version. LoricaError: there is none."""
        return self._load(version)

    def set_aside(self) -> list[UInt8[np.ndarray, "s s 3"]] | list[str]:
        """The images that it has set aside, as small as its backbone reads them; or the texts, in the words of its
        tokens."""
        kept, _ = Album(self.checkpoints).kept()
        if kept is None:
            return []
        inputs = inputs_of(kept)
        if isinstance(inputs, Tokens):
            reader: Any = self.reader  # of texts
            return reader.words(inputs)
        return list(kept.permute(0, 2, 3, 1).numpy())

    # --- changes ---

    def learn(
        self,
        source: Any,
        *,
        test: Any = None,
        frozen: bool = False,
        max_drop: float | None = None,
        max_flips: int | None = None,
        progress: bool | Reporter = False,
    ) -> Version | None:
        """Learns what has come: new classes, more images of known ones, or both. None of it is kept but the images set
        aside.

        Images that this model has learned already, by name and contents, are passed over, and so are copies among
        those that come together.

        Args:
            source: a folder of class folders, or texts in files as the source `table` reads them (where there are
                `train` and `test`, the first is learned, and the second judged by), a pair of images or texts and
                labels in memory, or a `Source`.
            test: the same, to judge old and new classes by, beside the images set aside.
            frozen: the scores of the classes there are must stay to the bit; LoricaError where the method cannot
                promise it.
            max_drop: the largest fall of accuracy over the images of old classes by which they are judged, in
                percentage points.
            max_flips: the largest number of them that were right and may become wrong.
            progress: as for `lorica.run`.

        Returns:
            The new version; None where nothing was new.

        Raises:
            RegressionError: more was lost than allowed; the model is what it was.
            LoricaError: everything wrong with the data or the folder, or training that cannot go on; the model is what
                it was.
        """
        allowed = require_bounds(max_drop, max_flips)
        with self._changing(progress) as (reporter, interruptions):
            data = self._recipe.data
            things = self.things
            arrivals = arrivals_of(source, "what is to be learned", data, reporter, things)
            judges = [
                *arrivals[1:],
                *(arrivals_of(test, f"the test {things}", data, reporter, things) if test is not None else []),
            ]
            for remark in arrivals[0].remarks:
                reporter.say(remark)
            session = self._session(reporter, interruptions)
            try:
                return self._learned(session, arrivals[0], judges, frozen, allowed, reporter)
            except LoricaError:
                self._give_up(session)
                raise

    def partial_fit(self, images: Any, labels: Any, classes: Any = None) -> Learner:
        """Learns these images, of classes seen before or never; `classes` is taken for scikit-learn's sake and not
        needed."""
        self.learn((images, labels))
        return self

    def fit(self, images: Any, labels: Any) -> Learner:
        """Learns these images and nothing else: what a model in memory has learned before is gone.

        Raises:
            LoricaError: a model in a folder, whose earlier classes would be lost.
        """
        if self._temporary is None and self.checkpoints.tasks:
            raise LoricaError(
                f"{self._where()}: fit would begin anew and lose what was learned; use partial_fit or learn"
            )
        if self._temporary is not None:
            self.folder.clear()
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
            self._stands(None)
        return self.partial_fit(images, labels)

    def rollback(self, to: int) -> Version:
        """Makes the model what it was after that version; those after it stay, and can be gone forward to.

        Raises:
            LoricaError: there is no such version, or the model is what it was then.
        """
        with self._changing(False):
            checkpoints = self.checkpoints
            checkpoints.open(self._policy())
            number = checkpoints.tasks
            self._require_version(checkpoints, to)
            if line_of_descent(checkpoints.lines, to) == line_of_descent(checkpoints.lines, number):
                raise LoricaError(f"{self._where()}: is what it was after version {to}; nothing to do")
            predictor = self._load(to)
            checkpoints.roll_back(to, Change(kind="rolled back", date=_now()), keep=self._policy())
            self._stands(predictor)
            return history_of(checkpoints)[-1]

    def forget(self, names: Any, *, hide: bool = False) -> Version:
        """Takes classes out of the model, with what it remembers of them; images of theirs can be learned again.

        Where nothing was trained on their images and the model is `forgettable`, or remembers no sums over classes, it
        is then a model that never saw them (`lorica.methods.base.Method.forget`). What stays of them otherwise is in
        the version's remarks. Earlier versions, which can be gone back to, still have them until `purge`.

        Args:
            names: of one class, or of several; numbers where the labels were numbers. One that is hidden can be
                forgotten yet.
            hide: only predict them no more; their statistics stay, and their images are known still.

        Raises:
            LoricaError: classes that it does not know, or all that it knows; or statistics that they cannot be taken
                out of.
        """
        wanted = [
            str(name) for name in ([names] if isinstance(names, str) or not isinstance(names, Iterable) else names)
        ]
        if not wanted:
            raise LoricaError("forget: expected names of classes, got none")
        with self._changing(False) as (reporter, interruptions):
            session = self._session(reporter, interruptions)
            method, checkpoints = session.method, session.checkpoints
            _ = checkpoints.entries  # the journal is whole
            album = Album(checkpoints)
            live = set(album.live)
            known_yet = live if hide else live | album.hidden
            numbers = {name: album.number_of(name) for name in wanted}
            gone = sorted({number for number in numbers.values() if number in known_yet})
            if unknown := [name for name, number in numbers.items() if number not in known_yet]:
                known = some([album.names[number] for number in album.live])
                raise LoricaError(f"{self._where()}: does not know {some(unknown)}; it knows {known}")
            if not (left := sorted(live - set(gone))):
                raise LoricaError(f"{self._where()}: at least one class has to stay")
            session.restore()
            images, labels = album.kept()
            staying = torch.isin(labels, torch.tensor(left))
            jury = Jury.of_kept(None if images is None else images[staying], labels[staying])
            was = right(jury.logits(plain_form(method)), jury.labels, album.live)
            named = [album.names[number] for number in gone]
            traces = [f"the statistics of {some(named)} are still in the model, which only predicts them no more"]
            if not hide:
                parts = Parts(album.parts())
                if why := list(method.cannot_forget(gone, parts)):
                    raise LoricaError([*why, self._instead_of_forgetting(gone, method)])
                method.forget(gone, parts)
                traces = list(method.traces_of(gone, frozen=album.frozen))
            logits = jury.logits(plain_form(method))
            moved = Moved.between(jury.labels, was, right(logits, jury.labels, left))
            note = {
                "classes": named,
                "remarks": traces,
                **_moved_note(moved, album.names),
                **self._fitted([logits] if len(logits) else [], jury.labels, left, len(album.names)),
            }
            if hide:
                note["hidden"] = True
            session.close([], change=Change(kind="forgot", date=_now(), note=note), forgotten=gone)
            self._stands(self._predictor_of(method, checkpoints, checkpoints.tasks))
            return history_of(checkpoints)[-1]

    def _instead_of_forgetting(self, gone: Sequence[int], method: Method) -> str:
        """What can be done with classes that this very model cannot forget."""
        remedy = "--hide predicts them no more and leaves their statistics"
        if not set(gone) & set(method.tasks[0].classes):
            remedy += "; or `lorica rollback` goes back to before they were learned"
        if self._forgettable:
            return remedy
        return (
            f"{remedy}; the model was made without --forgettable, which keeps what taking a class out needs: only a "
            "new model, whose first `lorica learn` has it, can forget one"
        )

    def purge(self) -> Version:
        """Removes every earlier version for good, with all that only they have of classes that were forgotten: tensors,
        images set aside and their digests. History still says what was done, with names of classes and numbers of
        images; exports stay, and those in the model's folder that have such a class are in the version's remarks.

        Raises:
            LoricaError: nothing has been learned yet; or a file of an earlier version cannot be removed.
        """
        _ = self.predictor
        with self._changing(False) as (reporter, interruptions):
            learns_on = self.checkpoints.can_learn_on_from(self.checkpoints.tasks)
            session = self._session(reporter, interruptions, to_learn=learns_on)
            method, checkpoints = session.method, session.checkpoints
            session.restore(to_learn=learns_on)
            album = Album(checkpoints)
            images, parts = album.remains()
            said = note_of(checkpoints, checkpoints.tasks)
            note = {key: said[key] for key in ("judged", "calibration") if key in said}
            note["remarks"] = [*album.traces, *self._exports_of([album.names[number] for number in album.forgotten])]
            self._drop_snapshots()
            change = Change(kind="purged", date=_now(), note=note)
            session.close([], change=change, images=images, parts=parts, learns_on=learns_on)
            self._stands(self._predictor_of(method, checkpoints, checkpoints.tasks))
            checkpoints.open(self._policy())  # raises where a file could not be removed
            return history_of(checkpoints)[-1]

    def _exports_of(self, names: Sequence[str]) -> Iterator[str]:
        """Which exports in the model's folder have one of these classes."""
        for file in sorted(self.folder.path.glob("*/*/export.json")):
            try:
                there = set(read_json(file)["class_names"]) & set(names) if wrote(file) else ()
            except (LoricaError, KeyError, TypeError):
                continue
            if there:
                yield (
                    f"{file.parent.relative_to(self.folder.path)}, an export, still has {some(sorted(there))}; export "
                    "again"
                )

    def join(self, other: str | Path | Learner) -> Version:
        """Takes up what another model has learned, where what they remember are sums over images in features that are
        the same in both.

        Such are models that went on from copies of one folder, and models made apart on the same backbone whose trunk
        nobody trained. It is then as if it had learned all of it, but for rounding (`lorica.methods.base.Method.join`);
        of a class that both know the images add up. The version after which two copies went different ways has to be
        one from which can be learned on: `checkpoints=everything` keeps all. A `forgettable` model can forget what it
        took up.

        Raises:
            LoricaError: a method that cannot be joined, features that differ, an image that would count twice, or
                classes that have been forgotten; the model is what it was.
        """
        its = other if isinstance(other, Learner) else load(other, method_file=self._given["method_file"])
        if not isinstance(its, Learner):
            raise LoricaError(f"{other}: holds a run, and no model that goes on learning")
        _ = self.predictor, its.predictor  # both have learned something
        with self._changing(False) as (reporter, interruptions):
            session = self._session(reporter, interruptions)
            method, checkpoints, there = session.method, session.checkpoints, its.checkpoints
            _ = checkpoints.entries, there.entries  # both journals are whole
            album, its_album = Album(checkpoints), Album(there)
            common = album.version_in_common(its_album)
            if 0 < common <= there.purged:
                raise LoricaError(
                    f"{its._where()}: has purged version {common}, so that it does not tell what it learned since; "
                    "join first, and purge then"
                )
            if album.has_forgotten(common) or its_album.has_forgotten(common):
                raise LoricaError("a model that has forgotten classes cannot be joined; join first, and forget then")
            if its._recipe.precision != self._recipe.precision:
                raise LoricaError(
                    f"precision: {self._recipe.precision} made the features of this model, and {its._recipe.precision} "
                    f"those of {its._where()}; learn both with the same"
                )
            names = [*album.names, *(name for name in its_album.names if album.number_of(name) is None)]
            numbers = {likeness(name): number for number, name in enumerate(names)}
            places = [numbers[likeness(name)] for name in its_album.names]
            session.restore()
            recipe = its._recipe.model_copy(update={"device": self._recipe.device})
            theirs, shared = self._standing(recipe, there, there.tasks), None
            if common:
                ours = common > checkpoints.purged and checkpoints.can_learn_on_from(common)
                kept = self.checkpoints if ours else there  # anew: what is saved follows on what the session has loaded
                shared = self._standing(self._recipe if ours else recipe, kept, common)
            before = len(method.tasks)
            Predictor(method, reader=build_reader(self._recipe, method.encoder)).join(theirs, shared, places)
            known = its_album.since(common, places)
            if known and (twice := album.known_already(known)):
                raise LoricaError(
                    f"{its._where()}: {twice} of the {self.things} that it has learned are known here, too, and would "
                    f"count twice; let this model learn from {self.things}, of which it passes over those that it knows"
                )
            if self._forgettable and list(theirs.method.cannot_forget(range(len(places)), Parts(its_album.parts()))):
                raise LoricaError(
                    f"{its._where()}: is not forgettable, and its classes could not be taken out of this model, which "
                    "is; let it take up this one instead"
                )
            new, parts = method.tasks[before:], Parts(its_album.parts(common) if self._forgettable else ())
            taken: dict[str, Tensor] = {}
            for place in method.summed():
                taken |= taken_up(parts, place, places, range(len(album.names)))
            added = Jury.of_kept(known.get("kept"), known.get("kept_labels", torch.zeros(0, dtype=torch.long)))
            logits = [jury.logits(plain_form(method)) for jury in (Jury.of_kept(*album.kept()), added)]
            labels = torch.cat([album.kept()[1], added.labels])
            note = {
                "classes": list(dict.fromkeys(name for task in new for name in task.class_names)),
                "from": its._where(),
                "set_aside": len(added.labels),
                **self._fitted([each for each in logits if len(each)], labels, list(range(len(names))), len(names)),
            }
            change = Change(kind="joined", date=_now(), note=note)
            session.close([], change=change, joined=len(new), images=known, parts=taken)
            self._stands(self._predictor_of(method, checkpoints, checkpoints.tasks))
            return history_of(checkpoints)[-1]

    def _standing(self, recipe: Recipe, checkpoints: Checkpoints, number: int) -> Predictor:
        """A model of that recipe as it was after that version, with all that learning on needs."""
        _, method = build_model(recipe)
        checkpoints.load(method, number, to_learn=True)
        return Predictor(method, reader=build_reader(recipe, method.encoder))

    def save(self, folder: str | Path) -> None:
        """Copies the model into a folder that is not there yet, or is empty: whole, or not at all."""
        target = Path(folder)
        if (target.is_dir() and any(target.iterdir())) or target.is_file():
            raise LoricaError(f"{target}: is there already; name a folder that is not")
        _ = self.predictor
        partial_copy = target.with_name(f".{target.name}.{uuid4().hex}.partial")
        with refusals(target.parent), without_empty(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self.folder.taken():
                    self.checkpoints.open(self._policy())  # without what was left behind
                    shutil.copytree(self.folder.path, partial_copy, ignore=shutil.ignore_patterns(".lorica*"))
                if target.is_dir():
                    target.rmdir()
                partial_copy.rename(target)
            finally:
                shutil.rmtree(partial_copy, ignore_errors=True)

    # --- scikit-learn's manners ---

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What it was made with."""
        return dict(self._given)

    def set_params(self, **given: Any) -> Learner:
        """Before anything is learned: other settings."""
        if self.checkpoints.tasks:
            raise LoricaError(f"{self._where()}: has learned, and keeps its settings; make another Learner")
        self.__init__(**(self._given | given))
        return self

    def __sklearn_clone__(self) -> Learner:
        """One with the same settings that has learned nothing, in memory: a folder is one model's."""
        given: dict[str, Any] = self._given | {"folder": None}
        return Learner(**given)

    def __sklearn_is_fitted__(self) -> bool:
        return self.checkpoints.tasks > 0

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags  # slow to import

        inputs = InputTags(two_d_array=False, three_d_array=self.things == "images", string=True)
        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=inputs,
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise LoricaError(
            "a Learner is not pickled, since unpickling runs what is in a file; use save, and lorica.load"
        )

    def __repr__(self) -> str:
        return f"Learner({self._where()}: {len(self.class_names)} classes)"

    # --- within ---

    def _stands(self, predictor: Predictor | None) -> None:
        """What predicts from now on, also for whoever is loading the one before."""
        with self._loading:
            self._predictor = predictor

    def _where(self) -> str:
        return "a model in memory" if self._temporary else str(self.folder.path)

    def _labels(self, names: Sequence[str]) -> np.ndarray:
        numbers = bool(names) and self._settings().labels == "numbers" and all(map(_NUMBER.fullmatch, names))
        return np.array(names, dtype=np.int64 if numbers else (str if names else "<U1"))

    def _policy(self) -> Literal["all", "everything"]:
        return "everything" if self._recipe.checkpoints == "everything" else "all"

    def _read_recipe(self) -> Recipe:
        """The recipe of the model in the folder; where there is none yet, that of the model which is to be made."""
        given = {key: value for key, value in self._given.items() if key not in _NOT_OF_A_RECIPE}
        if isinstance(given.get("backbone"), str):
            given["backbone"] = {"name": given["backbone"]}
        given = {key: value for key, value in given.items() if value is not None}
        path = self.folder.path
        with refusals(path):
            self.folder.tidy()
            checkpoints = self.checkpoints
            if checkpoints.tasks or self.folder.metrics.exists():
                if not holds_model(self.folder):
                    raise LoricaError(f"{path}: holds a run, and no model that goes on learning; choose another folder")
                settings = self._settings()
                saved = saved_recipe(self.folder, given, method_file=self._given["method_file"])
                if settings.recipe != _digest_of(self.folder.recipe):
                    raise LoricaError(
                        f"{self.folder.recipe}: is not what {self.folder.model.name} says of it; one of the two has "
                        "been altered: restore the file"
                    )
                if self._given["forgettable"] not in (None, settings.forgettable):
                    raise LoricaError(
                        f"{path}: forgettable is {settings.forgettable} of this model, and was decided when it was made"
                    )
                self._forgettable = settings.forgettable
                return saved
        if self._given["method_file"]:
            given["method.name"] = str(self._given["method_file"])
        recipe = read_recipe(self._given["recipe"], given)
        return read_recipe(recipe, {"data.source": IN_MEMORY, "data.root": None})

    def _settings(self) -> _Settings:
        try:
            return _Settings.model_validate(read_json(self.folder.model))
        except ValidationError as error:
            raise LoricaError([f"{self.folder.model}: {line}; restore the file" for line in misfits(error)]) from error

    def _load(self, version: int | None) -> Predictor:
        """What predicts as the model did after that version, or does now."""
        checkpoints = self.checkpoints
        if version is None or not checkpoints.tasks:
            _ = checkpoints.entries  # it is whole, and its last line the present version's
        number = checkpoints.tasks if version is None else version
        self._require_version(checkpoints, number)
        _, method = build_model(self._recipe)
        checkpoints.load(method, number)
        return self._predictor_of(method, checkpoints, number)

    def _predictor_of(self, method: Method, checkpoints: Checkpoints, number: int) -> Predictor:
        note = note_of(checkpoints, number)
        return Predictor(
            method,
            reader=build_reader(self._recipe, method.encoder),
            forgotten=sorted(forgotten_after(checkpoints, number)),
            calibration=Calibration.model_validate(note["calibration"]) if note.get("calibration") else None,
            precision=self._given["precision"] or self._recipe.precision,
        )

    def _require_version(self, checkpoints: Checkpoints, number: int) -> None:
        if isinstance(number, bool) or not isinstance(number, int):
            raise LoricaError(f"expected the number of a version, got {number!r}")
        if 0 < number <= checkpoints.purged:
            raise LoricaError(
                f"{self._where()}: version {number} was purged and is gone for good; there are those from "
                f"{checkpoints.purged + 1} on"
            )
        if not 1 <= number <= checkpoints.tasks:
            there = f"{checkpoints.purged + 1} to {checkpoints.tasks}" if checkpoints.tasks else "none yet"
            raise LoricaError(f"{self._where()}: has no version {number}; there are {there}")

    @contextmanager
    def _changing(self, progress: bool | Reporter) -> Iterator[tuple[Reporter, Interruptions]]:
        """The folder for this process, and in it for this thread, alone."""
        require_alone("a model is changed by one")
        reporter = progress_bar() if progress is True else nullcontext(progress or Silent())
        with (
            isolated(),
            self._learning,
            refusals(self.folder.path),
            self.folder.taken(),
            Interruptions() as interruptions,
            reporter as shown,
        ):
            yield shown, interruptions

    def _session(self, reporter: Reporter, interruptions: Interruptions, *, to_learn: bool = True) -> Session:
        """One that is to stand where the model does: `restore` takes it there."""
        recipe = self._recipe
        if recipe.track != "none":
            raise LoricaError(
                f"track: {recipe.track} follows a run, and not a model that goes on learning; leave it out"
            )
        accelerator, method = build_model(recipe)
        if method.learns_all_at_once:
            raise LoricaError(
                f"method.name: {method.name} learns all classes at once, and none afterwards; choose another"
            )
        session = Session(
            method,
            Fit(**recipe.fit.model_dump()),
            seed=recipe.seed,
            accelerator=accelerator,
            folder=RunFolder(self.folder.path),
            keep=self._policy(),
            snapshot_seconds=recipe.snapshot_seconds,
            reporter=reporter,
            interruptions=interruptions,
            undoable=UNDOABLE,
        )
        checkpoints = session.checkpoints
        if to_learn and checkpoints.tasks and not checkpoints.can_learn_on_from(checkpoints.tasks):
            raise CheckpointError(
                f"{self._where()}: this version predicts, but does not learn on, since its sums were not kept; go to "
                "one of the latest versions (rollback), or make models with checkpoints=everything"
            )
        return session

    def _learned(
        self,
        session: Session,
        arrival: Arrival,
        judges: Sequence[Arrival],
        frozen: bool,
        allowed: Allowed,
        reporter: Reporter,
    ) -> Version | None:
        method, checkpoints, things = session.method, session.checkpoints, self.things
        _ = checkpoints.entries  # the journal is whole
        album = Album(checkpoints)
        arriving = {likeness(arrival.names[each]) for each in np.unique(arrival.samples.labels)}
        for judge in judges:
            there = [judge.names[each] for each in np.unique(judge.samples.labels)]
            if unknown := [name for name in there if likeness(name) not in arriving and album.number_of(name) is None]:
                raise DataError(f"test {things}: of classes that nobody has learned: {some(unknown)}")
        numbers = [album.number_of(name) for name in arrival.names]
        fresh, digests, elsewhere, copies = album.unseen(arrival.samples, numbers, reporter, things=things)
        if copies:
            reporter.say(f"{copies} {things} are copies of others that have come with them, and are passed over")
        if elsewhere:
            reporter.say(f"{elsewhere} of the {things} were learned as another class before")
        if known := len(arrival.samples) - len(fresh) - copies:
            reporter.say(f"{known} {things} have been learned already, and are passed over")
        if not len(fresh):
            return None
        own = torch.from_numpy(arrival.samples.labels)[fresh]
        task = album.task_of([arrival.names[each] for each in own.unique().tolist()], len(checkpoints.learned_tasks))
        album_names = [*album.names, *task.new_names]
        so_far = [album.names[number] for number in album.live]
        groups = nearly_alike([*so_far, *task.new_names])  # each in that order
        if of_both := [group for group in groups if group[0] in so_far and group[-1] not in so_far]:
            reporter.say(alike_remark("classes", of_both))
        by_likeness = {likeness(name): number for number, name in enumerate(album_names)}
        labels = torch.tensor([by_likeness[likeness(arrival.names[each])] for each in own.tolist()])
        old, live = album.live, sorted({*album.live, *task.classes})
        reader = build_reader(self._recipe, method.encoder)
        tasks = [*checkpoints.learned_tasks, task]
        if problems := [*unsuited(self._recipe, reader), *method.misfits(self._recipe.method, tasks)]:
            raise LoricaError(problems)

        opened = reader.open(arrival.samples, int(self._recipe.data.cache_gib * 2**30))
        for remark in remarks(opened.facts):
            reporter.say(remark)
        aside = album.to_set_aside(labels, self._keep, self._recipe.data.split_seed)
        juries = [Jury.of_kept(*album.kept()), *(judge.jury(by_likeness, reader) for judge in judges)]
        judged = torch.cat([jury.labels for jury in juries])
        of_old = torch.isin(judged, torch.tensor(old, dtype=torch.long))
        if allowed.asks and old and not of_old.any():
            raise LoricaError(
                f"max_drop, max_flips: no {things[:-1]} of the classes so far is there to judge by; give test "
                f"{things}, or keep some of each class"
            )

        self._describe(session, arrival)
        session.folder.snapshot = self._snapshot_for(checkpoints, task, labels[~aside], digests[~aside], frozen)
        session.restore()
        before = None
        if old:
            plain = self._load(None).plain if session.resumes else plain_form(method)
            before = [jury.logits(plain) for jury in juries]
        split = Split(opened, fresh[~aside], labels[~aside])
        session.learn(task, split, frozen=frozen, notes_parts=self._forgettable)

        kept = kept_form(opened.fetch(fresh[aside], device=torch.device("cpu"))) if aside.any() else None
        added = Jury.of_kept(kept, labels[aside])
        plain = plain_form(method)
        after = [jury.logits(plain) for jury in juries]
        moved = Moved(0, 0, 0, ())
        if before is not None:
            was = torch.cat([right(each, jury.labels, old) for each, jury in zip(before, juries, strict=True)])
            now = torch.cat([right(each, jury.labels, live) for each, jury in zip(after, juries, strict=True)])
            moved = Moved.between(judged[of_old], was[of_old], now[of_old])
            allowed.require(moved, album_names, things)
            if frozen:
                _require_same_scores(before, after, old)
        kept_logits = [each for each in (after[0], added.logits(plain)) if len(each)]
        kept_labels = torch.cat([juries[0].labels, added.labels])
        note = {
            "classes": list(task.class_names),
            "images": int((~aside).sum()),
            "set_aside": int(aside.sum()),
            "from": arrival.where,
            **({"frozen": True} if frozen else {}),
            **_moved_note(moved, album_names),
            **self._fitted(kept_logits, kept_labels, live, len(album_names)),
        }
        known = {"digests": digests, "digest_labels": labels}
        if kept is not None:
            known |= {"kept": kept, "kept_labels": added.labels}
        change = Change(kind="learned", date=_now(), note=note)
        session.close([], change=change, images=known, parts=method.taken_parts())
        self._stands(self._predictor_of(method, checkpoints, checkpoints.tasks))
        return history_of(checkpoints)[-1]

    def _give_up(self, session: Session) -> None:
        """Leaves the folder as it was before a change that is not to be."""
        if session.abandon() and not session.checkpoints.tasks:
            self.folder.clear()
            self.folder.model.unlink(missing_ok=True)

    def _fitted(
        self, logits: Sequence[Tensor], labels: Int[Tensor, " n"], live: Sequence[int], classes: int
    ) -> dict[str, Any]:
        """What the images set aside say of a version: how many of each class are right, and how to read its logits."""
        if not logits:
            return {}
        together = torch.cat(list(logits))
        hits = right(together, labels, live)
        counts = [torch.bincount(each, minlength=classes).tolist() for each in (labels[hits], labels)]
        known = torch.isin(labels, torch.tensor(live))
        places = torch.searchsorted(torch.tensor(live), labels[known])
        calibration = calibrated(together[known][:, live], places)
        return {
            "judged": dict(zip(("right", "images"), counts, strict=True)),
            "calibration": calibration.model_dump(mode="json"),
        }

    def _snapshot_for(
        self,
        checkpoints: Checkpoints,
        task: Task,
        labels: Int[Tensor, " n"],
        digests: UInt8[Tensor, "n 16"],
        frozen: bool,
    ) -> Path:
        """Where the snapshot is of this task with these images, learned after these checkpoints as the recipe says;
        those of others are gone."""
        settings = [checkpoints.seal, frozen, self._recipe.resolved(), task.classes, task.class_names, labels.tolist()]
        name = hashlib.sha256(json.dumps(settings).encode() + digests.numpy().tobytes()).hexdigest()[:16]
        own = self.folder.path / f"snapshot-{name}.safetensors"
        self._drop_snapshots(but=own)
        return own

    def _drop_snapshots(self, but: Path | None = None) -> None:
        for each in self.folder.path.glob("snapshot-*.safetensors"):
            if each != but and wrote(each):
                each.unlink()

    def _describe(self, session: Session, arrival: Arrival) -> None:
        """Writes what is known before anything is learned. LoricaError: files are in the way that are not lorica's."""
        began = bool(session.checkpoints.tasks)
        require_ours([*self.folder.held(anew=not began), self.folder.model])
        if began:
            return
        write_json(
            self.folder.environment, environment() | machine_facts(session.accelerator.device, session.method.encoder)
        )
        write_text(self.folder.recipe, recipe_text(self._recipe.resolved()))
        labels = "numbers" if arrival.numbered else "names"
        made = {"format": 1, "labels": labels, "recipe": _digest_of(self.folder.recipe)}
        write_json(self.folder.model, made | {"forgettable": self._forgettable})


def _digest_of(recipe: Path) -> str:
    """Of what a model's recipe says, but for keys that may change."""
    values = {key: value for key, value in flatten(parse(recipe.read_text(encoding="utf-8"))) if key not in FREE}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _require_same_scores(before: Sequence[Tensor], after: Sequence[Tensor], old: Sequence[int]) -> None:
    for one, other in zip(before, after, strict=True):
        if len(one) and not torch.equal(one[:, old], other[:, old]):
            raise RegressionError(
                "frozen: the scores of older classes would not stay to the bit; the model is left as it was"
            )


def _moved_note(moved: Moved, names: Sequence[str]) -> dict[str, Any]:
    return {"lost": moved.lost, "won": moved.won, "fell": [names[number] for number, *_ in moved.fell]}


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def load(
    folder: Path | str,
    *,
    tasks: int | None = None,
    version: int | None = None,
    method_file: str | Path | None = None,
    device: str | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    **moved: Any,
) -> Predictor | Learner:
    """What is in a folder: the predictor of a run, or a model that goes on learning.

    Args:
        tasks: of a run, as it was after that many; absent = after its last one.
        version: of a model, a predictor of it as it was then; absent = the model.
        method_file: the `.py` file of the method, where it has one; no file is executed that is not named here.
        device: where it computes; absent = on the CPU, a model as its recipe says.
        precision: how it computes; absent = in fp32, a model as its recipe says.
        moved: where its weights are now, if they were moved: `**{"backbone.weights": …}`. Their contents decide.

    Raises:
        LoricaError: no such folder, no such checkpoint, one that does not fit, or another method file than the run's.
    """
    where = RunFolder(folder)
    where.require()
    if holds_model(where):
        learner = Learner(folder, device=device, precision=precision, method_file=method_file, **moved)
        if version is not None:
            return learner.predictor_of(version)
        _ = learner.predictor  # what is damaged is said now
        return learner
    return _load_run(where, tasks, method_file, device or "cpu", precision or "fp32", moved)


def holds_model(folder: RunFolder) -> bool:
    """Whether it is one that goes on learning."""
    return wrote(folder.model) or Checkpoints(folder.checkpoints).of_model


@isolated()
def _load_run(
    folder: RunFolder,
    tasks: int | None,
    method_file: str | Path | None,
    device: str,
    precision: Literal["fp32", "bf16"],
    moved: Mapping[str, Any],
) -> Predictor:
    recipe = saved_recipe(folder, moved, method_file=method_file)
    with torch.random.fork_rng([]):  # starting values are drawn, and then replaced
        encoder = load_backbone(**recipe.backbone.model_dump()).to(torch.device(device))
        method = build_method(recipe.method, encoder, **recipe.evaluate.reading)
    Checkpoints(folder.checkpoints).load(method, tasks)
    return Predictor(method, reader=build_reader(recipe, encoder), precision=precision)
