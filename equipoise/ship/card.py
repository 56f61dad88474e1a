"""The model card: what an artifact is, in words, made from its manifest and from what its file takes.

The figures stand between two markers, so that a user may write around them and `verify` can still hold them to the manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from equipoise.axes import AXES, on_request
from equipoise.records import Reading, reading_from

BEGIN, END = "<!-- equipoise: figures, checked by verify -->", "<!-- /equipoise -->"
TEST_BEGIN, TEST_END = "<!-- equipoise: test figures, written by verify -->", "<!-- /test figures -->"
UNTESTED = "Not verified yet: `equipoise verify .` reads the test split, checks the figures below and puts its own here."

_ROWS = (
    ("quality", "Quality on validation (points)"),
    ("drop", "Drop (points)"),
    ("latency_s", "Latency of one request"),
    ("size_bytes", "Size of what ships"),
    ("params", "Parameters"),
    ("macs", "MACs per sample"),
)

_LOAD = {
    "onnxruntime": """\
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {threads}  # as it was timed
session = onnxruntime.InferenceSession("{file}", options)
outputs = session.run(None, {fed})[0]""",
    "openvino": """\
import openvino
core = openvino.Core()
read = core.read_model("{file}")
read.reshape({{x: [{batch}, *list(x.partial_shape)[1:]] for x in read.inputs}})  # one batch size, as it was timed
exact = {{"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}}  # else a CPU with AMX computes in bfloat16
model = core.compile_model(read, "CPU", {{"INFERENCE_NUM_THREADS": {threads}, **exact}})
outputs = model(inputs)[0]""",
    "torch": """\
import torch
model = torch.export.load("{file}").module()
outputs = model({fed})""",
    "executorch": """\
import numpy
import torch
from executorch.runtime import Runtime
run = Runtime.get().load_program("{file}").load_method("forward")  # one sample at a time, on all cores
values = [torch.from_numpy(value) for value in {fed}]
rows = range(len(values[0]))
outputs = numpy.concatenate([run.execute([value[row : row + 1] for value in values])[0].numpy() for row in rows])""",
    "litert": """\
import numpy
from ai_edge_litert.interpreter import Interpreter
run = Interpreter("{file}", num_threads={threads}).get_signature_runner()  # one sample at a time
kinds = run.get_input_details()  # whole numbers are of 32 bits there
values = {{f"args_{{n}}": value.astype(kinds[f"args_{{n}}"]["dtype"]) for n, value in enumerate({fed})}}
rows = range(len(values["args_0"]))
answers = [run(**{{name: value[row : row + 1] for name, value in values.items()}}) for row in rows]
outputs = numpy.concatenate([next(iter(answer.values())) for answer in answers])""",
}
_ONE = {
    "onnxruntime": "{session.get_inputs()[0].name: inputs}",
    "torch": "torch.from_numpy(inputs)",
    "executorch": "[inputs]",
    "litert": "[inputs]",
}
_SEVERAL = {
    "onnxruntime": "inputs",
    "torch": "*map(torch.from_numpy, inputs.values())",
    "executorch": "inputs.values()",
    "litert": "inputs.values()",
}
"""What is handed over where the model takes one input, and where it takes several by name."""


Axes = tuple[str | int, ...]
"""Axes of an input: a number where one is fixed, a word where it is free."""


def loading(deployable: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the lines of Python that load a program as it was timed and hand `inputs` to it.

    Args:
        deployable: The manifest's entry of the program.
        names: Of its inputs.
    """
    runtime, option = deployable["runtime"], _options(deployable)
    return _LOAD.get(runtime, 'files: "{file}"').format(
        file=_main(deployable),
        threads=option.get("threads", 1),
        batch=option.get("batch", 1),
        fed=(_SEVERAL if len(names) > 1 else _ONE).get(runtime, ""),
    )


def _options(deployable: Mapping[str, Any]) -> dict[str, str]:
    """What the target's text says of threads and batch."""
    return dict(pair.split("=") for pair in deployable["target"].partition("?")[2].split("&") if "=" in pair)


def _main(deployable: Mapping[str, Any]) -> str:
    """The file that a runtime is given."""
    kinds = (".onnx", ".xml", ".pt2", ".pte", ".tflite")
    return str(next((f for f in deployable["files"] if f.endswith(kinds)), deployable["files"][0]))


def is_past(name: str) -> bool:
    """Whether an input of a file holds what was read before: ``past_0``, ``past_1``, ..., and not what a model calls so."""
    return name.startswith(PAST) and name.removeprefix(PAST).isdecimal()


def grows(past: Sequence[Axes]) -> bool:
    """Whether any of what a file holds of what was read is as long as that: keys and values of a text, not a sound's last."""
    return any(len(axes) > GROWING and not isinstance(axes[GROWING], int) for axes in past)


def card(manifest: Mapping[str, Any], takes: Mapping[str, Axes]) -> str:
    """Return the model card of a manifest as Markdown; `takes` holds the axes of each input, none where the file tells none."""
    study, deployable = manifest["study"], manifest["deployable"]
    runtime, precision = deployable["runtime"], deployable["precision"]
    past = [axes for name, axes in takes.items() if is_past(name)] if runtime == "onnxruntime" else []
    going_on = "" if not past else _written(manifest) if grows(past) else GOING_ON
    takes = {name: axes for name, axes in takes.items() if not is_past(name)}
    tags = ["equipoise", "compressed", runtime, precision]
    told = "holds the inputs by name, each" if len(takes) > 1 else "is"
    batch, free = "a batch (N, ...)", "; the first axis is free"
    if runtime == "openvino":  # the lines that load it reshape it to the batch that was timed
        n = int(_options(deployable).get("batch", 1))
        batch, free = f"a batch of exactly N={n} samples (N, ...), as it was timed,", ""
        takes = {name: (n, *axes[1:]) if axes else axes for name, axes in takes.items()}
    return f"""\
---
library_name: {json.dumps(runtime)}
tags: {json.dumps(tags)}
---

# {_plain(study["name"])}, compressed by Equipoise

{verified_block()}

The file that was scored and that ships is `{_main(deployable)}` ({precision}, for `{deployable["target"]}`).

{figures(manifest)}

## What was changed

{_changes(manifest)}

## How to load it

```python
{loading(deployable, tuple(takes))}
```

`inputs` {told} {batch} as the training code makes it, as a NumPy array of the type that the file takes
(floats in float32){free}.{_taken(takes)}
`equipoise verify .` checks every figure above on the files, in a clean process.
{_from_text(manifest, tuple(takes))}{going_on}
## Limits

- The table was read on the validation split, which also chose this model; `verify` reads the test split, untouched until then.
- Latency was measured beside the untouched model in `reference/`, on {_plain(_cpu(manifest))}
  (recorded, not checked). On another CPU the ratio changes, and an int8 file may answer differently: verify it there.
- `model.safetensors` holds the compressed weights in fp32; they are not what was scored when the file above is int8.
"""


TOKENIZER, CLASSES, ALPHABET = "tokenizer.json", "labels.json", "alphabet.json"
PAST = "past_"
GROWING = 2
"""The axis of a past that is as long as what was read, where it grows."""
GOING_ON = f"""
## How to go on

The same file takes, beside `input`, the past that it gave (`present_0`, ... become `{PAST}0`, ...): give it chunk after chunk,
as they come; without a past it begins anew.
"""
"""How the inputs begin, before a number, that hold what was read before; each has an empty one for a default."""
_READ = {"attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Inputs that a tokenizer makes beside the token numbers -> what it calls them."""


def _from_text(manifest: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the section that goes from texts to labels, where the tokenizer ships; else an empty line."""
    if TOKENIZER not in manifest["files"]:
        return ""
    return f"""
## From text to label

The tokenizer of its training cleans, cuts and fills up each text (`pip install tokenizers`):

```python
{from_text(manifest, names)}
```
"""


def from_text(manifest: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the lines of Python from texts to the names of their classes, or to scores where these have no names."""
    batch = int(_options(manifest["deployable"]).get("batch", 1))

    def array(name: str) -> str:
        return f"numpy.array([text.{_READ.get(name, 'ids')} for text in read])"

    several = ", ".join(f'"{name}": {array(name)}' for name in names)
    ends = "print(outputs)"
    if CLASSES in manifest["files"]:
        read = f'labels = json.loads(pathlib.Path("{CLASSES}").read_text("utf-8"))'
        ends = f"{read}\nprint([labels[place] for place in outputs.argmax(1)])"
    return f"""\
import json
import pathlib
import numpy
import tokenizers
texts = ["a film to remember"]{f" * {batch}" if batch > 1 else ""}
read = tokenizers.Tokenizer.from_file("{TOKENIZER}").encode_batch(texts)
inputs = {f"{{{several}}}" if len(names) > 1 else array("")}
{loading(manifest["deployable"], names)}
{ends}"""


def _written(manifest: Mapping[str, Any]) -> str:
    """Return the section of a file that reads on from what it has read."""
    return f"""
## How to write on

The same file takes, beside `input`, the past that it gave (`present_0`, ... become `{PAST}0`, ...), so that each token is read
once; all together at most as many as in a window of its training. Temperature 0 takes the likeliest token each time.

```python
{written(manifest)}
```
"""


def written(manifest: Mapping[str, Any]) -> str:
    """Return the lines of Python that write on from a text, or from numbers of tokens where no alphabet ships."""
    deployable = manifest["deployable"]
    begin, end = "tokens = [0]", "print(tokens)"
    if ALPHABET in manifest["files"]:
        begin = f"""\
characters = json.loads(pathlib.Path("{ALPHABET}").read_text("utf-8"))
tokens = [characters.index(one) if one in characters else 0 for one in "The "]"""
        end = 'print("".join(characters[token] for token in tokens))'
    return f"""\
import json
import pathlib
import numpy
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = {_options(deployable).get("threads", 1)}
options.log_severity_level = 3  # it would warn that a past has a default
session = onnxruntime.InferenceSession("{_main(deployable)}", options)
{begin}
length, temperature, generator = 60, 0.7, numpy.random.default_rng(0)
new, past = tokens, {{}}
while len(tokens) < length:
    scores, *present = session.run(None, {{"input": numpy.array([new]), **past}})
    past = {{f"{PAST}{{number}}": part for number, part in enumerate(present)}}
    last = scores[0, :, -1]
    drawn = last / temperature + generator.gumbel(size=len(last)) if temperature else last
    new = [int(drawn.argmax())]
    tokens = tokens + new
{end}"""


def figures(manifest: Mapping[str, Any]) -> str:
    """Return the block of the card that `verify` compares with the manifest."""
    promise, baseline = manifest["promise"], manifest["baseline"]
    lines = ["| | untouched | this model |", "|---|---|---|"]
    asked = [(AXES[word].key, AXES[word].label) for word in on_request(promise)]
    for axis, title in (*_ROWS, *asked):
        if axis in promise:
            before = str(_whole(reading_from(baseline[axis]))) if axis in baseline else ""
            lines.append(f"| {title} | {before} | {_whole(reading_from(promise[axis]))} |")
    if "speed_up" in promise:
        lines.append(f"| Times faster | 1 | {_times(reading_from(promise['speed_up']))} |")
    told = ", ".join(f"{name} {value:g}" for name, value in manifest["study"]["told"].items())
    bounds = [f"Told, not measured: {told}."] if told else []
    if manifest["bounds"]:
        bounds.append(f"Promised: {_code(manifest['bounds'])}.")
    if manifest["bounds_missed"]:
        bounds.append(f"Asked for and **not** reached: {_code(manifest['bounds_missed'])}.")
    return "\n".join([BEGIN, "", *lines, "", *bounds, END])


def _taken(takes: Mapping[str, Axes]) -> str:
    """Say which axes of the inputs are free: of sequences the length is, unless the model's code fixes it."""
    shapes = [f"{_code(name)} ({', '.join(map(_plain, axes))})" for name, axes in takes.items() if axes]
    return f"\nThe file takes {', '.join(shapes)}: an axis with a number is fixed, one with a word is free." if shapes else ""


def _cpu(manifest: Mapping[str, Any]) -> str:
    return str(manifest["recorded"]["machine"].get("cpu", "an unknown CPU"))


def verified_block(headline: str = "", broken: Sequence[Named] = (), untold: Sequence[Named] = ()) -> str:
    """Return the block of the card that `verify` fills: the test split's figures, and what they leave broken or open."""
    nothing = "`equipoise verify` ended before the test split was read." if broken or untold else UNTESTED
    lines = [f"**{_plain(headline[:1].upper() + headline[1:], keep='[]')}.**" if headline else nothing]
    for word, checks in (("Broken", broken), ("Cannot be told from there", untold)):
        if checks:
            lines += ["", f"{word}: {', '.join(_plain(check.name) for check in checks)}."]
    return "\n".join([TEST_BEGIN, *lines, TEST_END])


def with_test(text: str, block: str) -> str:
    """Return the card `text` with its block of test figures replaced by `block`; where it has none, above the figures."""
    pieces = re.split(f"{re.escape(TEST_BEGIN)}.*?{re.escape(TEST_END)}", text, flags=re.DOTALL)
    if len(pieces) > 1:
        return pieces[0] + block + "".join(pieces[1:])
    before, mark, after = text.partition(BEGIN)
    return f"{before}{block}\n\n{mark}{after}"


class Named(Protocol):
    """Something with a name: a check."""

    @property
    def name(self) -> str:
        """What was checked."""


def _changes(manifest: Mapping[str, Any]) -> str:
    changed = manifest["changed"]
    if not changed:
        return f"Nothing: this is the untouched model ({manifest['fidelity']})."
    rows = [f"| {_code(knob)} | {_plain(before)} | {_plain(after)} |" for knob, (before, after) in changed.items()]
    told = {
        "one-shot": "repaired by least squares, not trained",
        "recovered": "then recovered by distillation from the original",
    }
    return "\n".join(
        [
            f"{len(rows)} knobs, {told.get(manifest['fidelity'], 'as it is')}.",
            "",
            "| knob | untouched | here |",
            "|---|---|---|",
            *rows,
            *_left(manifest["left_float"]),
        ]
    )


def _left(layers: Sequence[str]) -> list[str]:
    """Say which layers the runtime could not compute in the bits that the plan gives them."""
    return ["", f"Left in float, since the runtime has no int8 for them: {', '.join(map(_code, layers))}."] if layers else []


def _whole(reading: Reading) -> str:
    return f"{reading.get():,.0f}" if reading.unit == "1" else str(reading)


def _times(reading: Reading) -> str:
    inside = f" [{reading.low:.2f}, {reading.high:.2f}]" if reading.low is not None and reading.high is not None else ""
    return f"{reading.get():.2f}×{inside}"


def _code(value: object) -> str:
    """Show a name as it is, in a code span that it cannot end."""
    return f"`{''.join(c for c in str(value) if c.isprintable() and c not in '`|')}`"


def _plain(value: object, *, keep: str = "") -> str:
    """Keep names from breaking out of the page's markup."""
    return "".join(c for c in str(value) if c.isprintable() and (c in keep or c not in "`|<>[]"))
