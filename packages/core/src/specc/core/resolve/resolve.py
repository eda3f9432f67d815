"""The spec with every default and every derived value filled in, each with its origin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from specc.core.algorithms import algorithm
from specc.core.algorithms.base import Derived
from specc.core.datafiles import Item, items_of
from specc.core.errors import SpeccError, SpeccErrors
from specc.core.files import flatten
from specc.core.language import Checked, Spec, rules_with_facts
from specc.core.language.models import LONGEST_SEQUENCE
from specc.core.layouts import section
from specc.core.layouts.base import HEADS, say
from specc.core.lock import Locked, placeless
from specc.core.references import placed
from specc.core.resolve import source
from specc.core.resolve.data import pin_data, places_of
from specc.core.resolve.kept import ABSENT, ASKED, GRID, LENGTH, WHOLE, Earlier, get, put, spec_of, stated
from specc.core.resolve.sources import locate
from specc.core.resolve.verifier import FACTS, Verifier, find

LANGUAGE: Final = 1
INIT_FILES: Final = ("config.json", "model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedSpec:
    """What the compiler knows after `resolve`.

    `values` is the whole tree, plain JSON. `origins` says of each dotted path where its value is from:
    `spec.yaml:14:3`, `default (language v1)` or `derived from …`. `files` maps the logical names of files outside
    the store to their places here; a file that only the lock knows is missing from it.
    """

    values: Mapping[str, Any]
    written: Mapping[str, Any]
    origins: Mapping[str, str]
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """Resolves the builds of one spec; what it has read of a verifier for one of them it does not read again.

    `base` is the spec's folder, `digest` returns a file's sha256, `date` is today's. `verifiers` are those that were
    read, by model and revision, and `sources` the data of all builds with what pins them.
    """

    base: Path
    digest: Callable[[Path], str]
    date: str
    verifiers: dict[tuple[str, str | None], Mapping[str, Any]] = field(default_factory=dict[Any, Any])
    sources: list[Item] = field(default_factory=list[Any])

    def resolve(self, checked: Checked, *, locked: Locked | None = None, upgrade: Collection[str] = ()) -> ResolvedSpec:
        """Resolve a build, with the values of its lock where the spec leaves them to us.

        `locked` is the part `locked` of an earlier lock. What the spec says and the files beside it are followed
        always. A hub's commit, a file that is not here, the date and all defaults are the lock's, so that neither a
        moved branch nor a release changes a locked build, save for the parts named in `upgrade`: `verifier`, `data`,
        `defaults`.
        """
        earlier = Earlier(values=locked.values, written=locked.written) if locked else None
        defaults = None if "defaults" in upgrade else earlier
        written = written_values(checked, checked.spec.values())
        tree = _spec(checked, written, defaults).values()
        asked, old = tree["verifier"], earlier.values if earlier else None
        verifier = self._verifier(asked, old["verifier"] if old and "verifier" not in upgrade else None)
        pinned = old if "data" not in upgrade else None
        known = [*self.sources, *(item for _, item in items_of(pinned or {}))]
        files = pin_data(tree, self.base, self.digest, known, checked.document)
        self.sources.extend(item for _, item in items_of(tree))
        files |= _pin_init(tree, self.base, self.digest, pinned, checked)
        tree["verifier"] = {**asked, **verifier.facts}
        if asked["revision"] is not None:
            tree["verifier"]["asked_revision"] = asked["revision"]
        converted = self._converted(tree, old if "data" not in upgrade else None, checked)
        tree["date"] = defaults.values["date"] if defaults else self.date
        files |= {f"verifier/{name}": path for name, path in verifier.files.items()}
        files |= {f"source/{name}": path for name, path in converted.files.items()} if converted else {}
        # The release that locked these very words has checked them, with the defaults of its time.
        locked_so = defaults is not None and defaults.written == placeless(written) and defaults.same_verifier(tree)
        if not locked_so and (errors := rules_with_facts(checked, verifier.facts["config"])):
            raise SpeccErrors(errors)
        origins = _fill(tree, written, defaults)
        if converted is not None and (wrong := _unlike(converted, tree)):
            raise checked.document.error(wrong, ("draft", "init", "convert"), id="E0316",
                                         hint="make the spec's `draft` the same, or convert another one")  # fmt: skip
        for path in flatten(tree):
            if path not in origins and path.startswith("verifier.") and path.split(".")[1] in FACTS:
                origins[path] = f"read from the verifier `{asked['model']}`"
            elif path not in origins and path.startswith("draft.init.") and path not in written:
                origins[path] = f"read from `{tree['draft']['init'].get('convert') or tree['draft']['init']['from']}`"
            elif path not in origins:
                origins[path] = str(checked.document.position(tuple(path.split("."))))
        return ResolvedSpec(values=tree, written=written, origins=origins, files=files)

    def _converted(
        self, tree: dict[str, Any], pinned: Mapping[str, Any] | None, checked: Checked
    ) -> source.Source | None:
        """Put the facts of a draft that is to be converted into a tree's `draft.init`; return what is known of it."""
        init = tree["draft"].get("init")
        if init is None or "convert" not in init:
            return None
        before = (pinned["draft"].get("init") or None) if pinned else None
        try:
            found = source.find(init, self.base, self.digest, before if before and "convert" in before else None)
            source.check(found, tree["verifier"]["config"])
            if not found.layout.speculators:
                raise SpeccError(f"the source is {found.layout.title}, which no algorithm here trains")  # noqa: TRY301
        except SpeccError as error:
            hint = (
                f"`specc convert {init['convert']} --verifier …` says why of each layout" if error.note else error.hint
            )
            raise checked.document.error(error.message, ("draft", "init", "convert"), id="E0317", hint=hint) from error
        asked = {"asked_revision": init["revision"]} if "revision" in init else {}
        init |= {**found.facts, **asked}
        return found

    def _verifier(self, section: Mapping[str, Any], pinned: Mapping[str, Any] | None) -> Verifier:
        """Return the facts of a verifier, which `pinned` (of a lock) or an earlier build has pinned already."""
        asked = section["model"], section["revision"]
        found = find(section, self.base, self.digest, self.verifiers.get(asked, pinned))
        self.verifiers[asked] = {"model": section["model"], "asked_revision": section["revision"], **found.facts}
        return found


def restore(locked: Locked, *, base: Path) -> ResolvedSpec:
    """Resolve the spec that a lock wrote down, with all that is pinned in it: nothing is hashed and nobody is asked.

    The values are the lock's own unless this release has other keys than the one that wrote it. Raises `SpeccError`
    if it has no place for something that the lock's spec says.
    """
    earlier = Earlier(values=locked.values, written=locked.written)
    tree, old = earlier.spec().values(), earlier.values
    tree["date"] = old["date"]
    tree["verifier"] |= old["verifier"]
    if (init := tree["draft"].get("init")) is not None:
        init |= old["draft"]["init"]
    for (_, item), (_, pinned) in zip(items_of(tree), items_of(old), strict=True):
        item.update(pinned)
    _fill(tree, earlier.written, earlier)
    return ResolvedSpec(values=tree, written=earlier.written, origins={}, files=_places(tree, base))


def _spec(checked: Checked, written: Mapping[str, Any], earlier: Earlier | None) -> Spec:
    """Return the spec with the lock's choices where it leaves them to us, since other keys depend on them."""
    tags = earlier.tags(written) if earlier else {}
    values = checked.spec.values()
    if all(get(values, tag) == value for tag, value in tags.items()):
        return checked.spec
    try:
        return spec_of({**written, **tags})
    except ValidationError:  # the spec has keys of what is the default now
        return checked.spec


def _fill(tree: dict[str, Any], written: Mapping[str, Any], earlier: Earlier | None) -> dict[str, str]:
    """Set what neither the spec nor the verifier says, and return where each of those values is from.

    Defaults come first: some values are derived from them.
    """
    origins = {"date": "the day of the lock"}
    paths = dict.fromkeys(WHOLE if path.startswith(WHOLE + ".") else path for path in flatten(tree))
    derived = _derived(tree)
    for path in paths:
        fact = (
            path == "date"
            or path.startswith("draft.init.")
            or (path.startswith("verifier.") and path.split(".")[1] in (*FACTS, "asked_revision"))
        )
        if fact or stated(path, written) or (path in derived and get(tree, path) is None):
            continue
        value = earlier.default(path, tree, written) if earlier else ABSENT
        if value is not ABSENT:
            put(tree, path, value)
        origins |= dict.fromkeys(flatten({path: get(tree, path)}), f"default (language v{LANGUAGE})")
    for path, item in _derived(tree).items():
        if get(tree, path) in (None, "full"):
            value = earlier.derived(path, tree, written) if earlier else ABSENT
            put(tree, path, item.value if value is ABSENT else value)
            origins[path] = item.origin
    return origins


def written_values(checked: Checked, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the user wrote, flattened, in the normal form of the models (`loss: kl` is `{kl: 1.0}`)."""
    paths = checked.document.written()
    flat = flatten(spec)
    return {path: value for path, value in flat.items() if path in paths or _under(path, paths)}


def _derived(tree: Mapping[str, Any]) -> dict[str, Derived]:
    config = tree["verifier"]["config"]
    length, row = min(LONGEST_SEQUENCE, config["max_position_embeddings"]), algorithm(tree["draft"]["algorithm"])
    own = row.derive(tree["draft"], config)
    grid, asked = (tree.get("evaluate") or {}).get("grid"), get(tree, ASKED) or own[ASKED].value
    return {
        **own,
        **({} if grid is None else {GRID: Derived([asked], f"derived from {ASKED}")}),
        WHOLE: Derived(dict(row.loss), f"default of {row.title} (language v{LANGUAGE})"),
        LENGTH: Derived(length, "derived from verifier.config.max_position_embeddings"),
    }


def _pin_init(
    tree: dict[str, Any],
    base: Path,
    digest: Callable[[Path], str],
    pinned: Mapping[str, Any] | None,
    checked: Checked,
) -> dict[str, Path]:
    """Put a sha256 beside the files of an earlier speculator; return where they are."""
    files: dict[str, Path] = {}
    init = tree["draft"].get("init")
    if init is not None and "from" in init:
        places = {name: placed(f"{init['from']}/{name}", base) for name in INIT_FILES}
        if all(place.is_file() for place in places.values()):
            init["files"] = {name: digest(place) for name, place in places.items()}
            files |= {f"init/{name}": place for name, place in places.items()}
        elif pinned and (pinned["draft"].get("init") or {}).get("from") == init["from"]:
            init["files"] = pinned["draft"]["init"]["files"]
        else:
            raise checked.document.error(
                f"`{init['from']}` is not a folder with `config.json` and `model.safetensors`",
                ("draft", "init", "from"),
            )
    return files


def _unlike(converted: source.Source, tree: Mapping[str, Any]) -> str | None:
    """Say in what the draft of a spec is otherwise than the one it is to start from; None if in nothing.

    What is learnt has nothing of the vocabulary. Norms and rotary embeddings of its own the stage `draft` warns of.
    """
    if converted.config is None:
        return None
    own = tree["verifier"]["config"]
    there, decoder = section(converted.layout, converted.config, own)
    pairs = {key: (value, tree["draft"].get(key)) for key, value in there.items() if key != "vocabulary"}
    pairs |= {key: (decoder[key], own[key]) for key in HEADS}
    if "confidence" in pairs:
        pairs["confidence"] = (_reads(pairs["confidence"][0]), _reads(pairs["confidence"][1]))
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            return f"the source's `{name}` is {say(found)}, and the draft's {say(wanted)}"
    return None


def _reads(confidence: Mapping[str, Any] | None) -> bool | None:
    """Return what decides a confidence head's tensors."""
    return None if confidence is None else bool(confidence["with_markov"])


def _places(values: Mapping[str, Any], base: Path) -> dict[str, Path]:
    """Return where the files that resolved values name are on this machine, without looking into them."""
    places = places_of(values, base)
    if (init := values["draft"].get("init")) is not None:
        kind, folder = ("source", init["convert"]) if "convert" in init else ("init", init["from"])
        places |= {f"{kind}/{name}": placed(f"{folder}/{name}", base) for name in init["files"]}
    verifier = locate(values["verifier"]["model"], base)
    places |= {f"verifier/{name}": path for name, path in verifier.files.items()} if verifier else {}
    return {name: path for name, path in places.items() if path.is_file()}


def _under(path: str, written: Collection[str]) -> bool:
    """Tell whether a parent of `path` was written as one value (`loss: kl` covers `train.loss.kl`)."""
    parts = path.split(".")
    return any(".".join(parts[:end]) in written for end in range(1, len(parts)))


def missing_file(name: str, values: Mapping[str, Any]) -> SpeccError:
    """Return the error for a file that the lock knows and this machine does not have."""
    if name.startswith("verifier/"):
        from specc.core.resolve.sources import absent

        return absent(values["verifier"]["model"])
    if name.startswith("source/"):
        return SpeccError(f"the source's file `{name.removeprefix('source/')}` is not here",
                          hint="the lock alone cannot convert it: put its folder back")  # fmt: skip
    return SpeccError(
        f"there is no file `{name}`", hint="paths are relative to the spec; the lock alone cannot build it"
    )


__all__ = ["LANGUAGE", "ResolvedSpec", "Resolver", "Verifier", "missing_file", "restore", "written_values"]
