"""The graph of a model made from that of its kin: thin layers for one, a bias more, a part gone with its past.

Exporting takes seconds and these changes follow from the modules alone. What is made here is a guess, as good as the reading of
two lists of modules: it is to be compared with the model itself before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from equipoise.runtimes.decoding import MEMORY, PAST, PRESENT
from equipoise.runtimes.layers import TRANSPOSED, parameter_of, scope_of

Parts = Mapping[str, tuple[str, ...]]
"""Module name -> its class and the parameters that it holds itself."""

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators of the layers that are made thin or given a bias; their second input are the weights."""

HANDING_ON = ("Identity", "Dropout", "Skip", "Blank")
"""Classes of parts that hand their input on or whose answer nothing needs; of what another may do few inputs need not tell."""


def parts_of(model: nn.Module) -> Parts:
    """Return what the graph of a model depends on, besides the code of its classes and its numbers."""
    return {name: (type(part).__name__, *_held(part)) for name, part in model.named_modules()}


def grown(graph: ModelProto, parts: Parts, model: nn.Module) -> ModelProto | None:
    """Return the graph of `model` as that of its kin would have it; None where they differ in more than is understood.

    Args:
        graph: Of the kin: initializers named after parameters, transposed ones with ``.T`` behind, nodes named
            ``module/operator``. It is not changed.
        parts: The modules of the kin.
    """
    changed = _changed(parts, model)
    if changed is None or not changed:
        return None
    made = ModelProto()
    made.CopyFrom(graph)
    sketch = _Sketch(made.graph, list(made.graph.node))
    if not all(sketch.change(name, part) for name, part in changed.items()):
        return None
    sketch.finish(dict(model.named_parameters()))
    return made


def grouped(graph: GraphProto, model: nn.Module) -> None:
    """Give each convolution of a graph the groups that it has in the model (in place): depthwise, they go with its width."""
    groups = {f"{name}.weight": getattr(part, "groups", None) for name, part in model.named_modules()}
    for node in graph.node:
        count = groups.get(node.input[1]) if node.op_type == "Conv" else None
        for attribute in node.attribute if count is not None else ():
            if attribute.name == "group":
                attribute.i = count


def _held(part: nn.Module) -> list[str]:
    return sorted(name for name, value in part._parameters.items() if value is not None)


def _changed(parts: Parts, model: nn.Module) -> dict[str, nn.Module] | None:
    """Return the outermost modules that differ from the kin's, by name; None where one is of no kind that `grown` knows."""
    changed: dict[str, nn.Module] = {}
    for name, part in model.named_modules():
        if any(name.startswith(f"{other}.") for other in changed):
            continue
        before, now = parts.get(name), (type(part).__name__, *_held(part))
        if before == now:
            continue
        thin = isinstance(part, nn.Sequential) and len(part) > 1 and all(isinstance(p, nn.Conv2d | nn.Linear) for p in part)
        biased = before is not None and {*now} - {*before} == {"bias"} and {*before} <= {*now}
        empty = type(part).__name__ in HANDING_ON or (isinstance(part, nn.Sequential) and not len(part))
        if before is None or not ((thin and "weight" in before) or biased or empty):
            return None
        changed[name] = part
    left = {name for name in parts if any(name.startswith(f"{other}.") for other in changed)}
    return changed if {*parts} - left <= {name for name, _ in model.named_modules()} else None


@dataclass
class _Sketch:
    """A graph that is being changed; its nodes are a list until it is finished."""

    graph: GraphProto
    nodes: list[NodeProto]

    def change(self, name: str, part: nn.Module) -> bool:
        """Make of a module what it is in the model, where the graph shows how; whether it did."""
        if isinstance(part, nn.Sequential) and len(part) > 1:
            return self.thin(name, [*part])
        return self.biased(name) if _held(part) else self.left_out(name, adds=getattr(part, "adds", False))

    def thin(self, name: str, parts: Sequence[Any]) -> bool:
        """Let several layers, each reading the one before it, stand where one stood; whether that one was found."""
        place = self._place(name)
        if place is None or any(getattr(part, "padding_mode", "zeros") != "zeros" for part in parts):
            return False
        node, last = self.nodes[place], len(parts) - 1
        turned = node.input[1].removeprefix(f"{name}.weight")
        row, given = [], node.input[0]
        for i, part in enumerate(parts):
            if isinstance(part, nn.Conv2d) != (node.op_type == "Conv"):
                return False
            new = NodeProto()
            new.CopyFrom(node)
            if isinstance(part, nn.Conv2d):
                del new.attribute[:]
                new.attribute.extend(_attributes(part))
            held = list(node.input) if i == last else list(node.input[:2])
            held[0], held[1] = given, f"{name}.{i}.weight{turned}"
            new.name, new.input[:] = f"{name}.{i}/{node.op_type}", held
            given = node.output[0] if i == last else f"{name}.{i}/answer"
            new.output[:] = [given]
            row.append(new)
        self.nodes[place : place + 1] = row
        self._renamed(f"{name}.bias", f"{name}.{last}.bias")
        for other in self.nodes:
            if scope_of(other) == name:
                other.name = f"{name}.{last}/{other.name.rpartition('/')[2]}"
        return getattr(parts[last], "bias", None) is None or self._reads(f"{name}.{last}.bias") or self.biased(f"{name}.{last}")

    def biased(self, name: str) -> bool:
        """Give a layer a bias; whether the layer was found and had none."""
        place = self._place(name)
        if place is None or self._reads(f"{name}.bias"):
            return False
        node = self.nodes[place]
        if node.op_type != "MatMul":
            if len(node.input) != 2:
                return False
            node.input.append(f"{name}.bias")
            return True
        whole, node.output[0] = node.output[0], f"{name}/product"
        self.nodes.insert(place + 1, helper.make_node("Add", [node.output[0], f"{name}.bias"], [whole], name=f"{name}/Add"))
        return True

    def left_out(self, name: str, *, adds: bool) -> bool:
        """Let what a part was given stand for what it gave, and forget what was kept for it; whether the graph shows how.

        Args:
            adds: Whether what it gave is a term of a sum, of which nothing is to be left.
        """
        inside = [node for node in self.nodes if f"{scope_of(node)}.".startswith(f"{name}.")]
        made = {value for node in inside for value in node.output}
        fixed = {tensor.name for tensor in self.graph.initializer}
        fixed |= {value for node in self.nodes if node.op_type == "Constant" for value in node.output}
        read = {value for node in inside for value in node.input if value} - made - fixed
        beyond = [node for node in self.nodes if not made & {*node.output}]
        given = made & {value for node in beyond for value in node.input}
        ends = {value.name for value in self.graph.output}
        if not given and not made & ends:
            return True  # nothing was read of it
        stood = self._unadded(beyond, given) if adds else self._handed_on(made, read, given)
        if not stood or stood.keys() & ends:
            return False
        for old, new in stood.items():
            self._renamed(old, new)
        return self._forgotten(name)

    @staticmethod
    def _unadded(beyond: Sequence[NodeProto], given: set[str]) -> dict[str, str]:
        """Return the one sum that what a part gave is a term of -> its other term."""
        sums = [node for node in beyond if node.op_type == "Add" and given & {*node.input}]
        return {node.output[0]: term for node in sums for term in node.input if term not in given} if len(sums) == 1 else {}

    def _handed_on(self, made: set[str], read: set[str], given: set[str]) -> dict[str, str]:
        """Return what a part gave -> what it read; of several, each sum -> that of its terms which was read.

        A sum is the part's own, or stands beyond it where a method was called that is no module's.
        """
        if len(read) == len(given) == 1:
            return dict(zip(given, read, strict=True))
        stood: dict[str, str] = {}
        for node in self.nodes:
            terms = [stood.get(term, term) for term in node.input]
            whole = [term for term in terms if term in read]
            if node.op_type == "Add" and len(whole) == 1 and (node.output[0] in made or given & {*terms}):
                stood[node.output[0]] = whole[0]
        return stood

    def _forgotten(self, name: str) -> bool:
        """Leave out the outputs that are computed with a part's weights; whether nothing is but what was kept for later."""
        lost = {tensor.name for tensor in self.graph.initializer if parameter_of(tensor.name).startswith(f"{name}.")}
        for node in self.nodes:
            lost |= {*node.output} if lost & {*node.input} else set()
        ends = [*self.graph.output]
        del self.graph.output[:]
        self.graph.output.extend(value for value in ends if value.name not in lost)
        return all(value.name.startswith((PRESENT, MEMORY)) for value in ends if value.name in lost)

    def finish(self, parameters: Mapping[str, Tensor]) -> None:
        """Write the nodes that are of use back into the graph, and an initializer for each parameter that they read."""
        kept = self._counting_on(self._needed())
        needed = {value for node in kept for value in node.input} | {value.name for value in self.graph.output}
        there = [tensor for tensor in self.graph.initializer if tensor.name in needed]
        produced = {tensor.name for tensor in there} | {value for node in kept for value in node.output}
        new = []
        for name in sorted(needed - produced):
            value = parameters.get(parameter_of(name))
            if value is not None:
                array = value.detach().numpy()
                new.append(numpy_helper.from_array(np.ascontiguousarray(array if name in parameters else array.T), name))
        given = [value for value in self.graph.input if value.name in needed or not value.name.startswith(PAST)]
        del self.graph.node[:], self.graph.initializer[:], self.graph.input[:]
        self.graph.node.extend(kept)
        self.graph.initializer.extend([*there, *new])
        self.graph.input.extend(given)
        self._numbered()

    def _needed(self) -> list[NodeProto]:
        """Return the nodes that the outputs come from."""
        needed, kept = {value.name for value in self.graph.output}, []
        for node in reversed(self.nodes):
            if needed & {*node.output}:
                kept.append(node)
                needed |= {*node.input}
        return kept[::-1]

    def _counting_on(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """Let the places of a past that nothing else reads be counted on one that is read, as all are as long (in place)."""
        pasts = [value.name for value in self.graph.input if value.name.startswith(PAST)]
        read = {value for node in nodes if node.op_type != "Shape" for value in node.input}
        if alive := [name for name in pasts if name in read]:
            for node in (node for node in nodes if node.op_type == "Shape" and node.input[0] in pasts):
                node.input[0] = node.input[0] if node.input[0] in read else alive[0]
        return nodes

    def _numbered(self) -> None:
        """Number the pasts, and what is kept for later, from 0 on."""
        ends = (self.graph.input, self.graph.output)
        kinds = [[value.name for end in ends for value in end if value.name.startswith(k)] for k in (PAST, PRESENT, MEMORY)]
        new = {name: f"{name.rpartition('_')[0]}_{i}" for names in kinds for i, name in enumerate(names)}
        for node in self.graph.node:
            for values in (node.input, node.output):
                values[:] = [new.get(value, value) for value in values]
        for named in (*self.graph.input, *self.graph.output, *self.graph.initializer):
            named.name = new.get(named.name, named.name)

    def _place(self, name: str) -> int | None:
        """Return where the one product with a layer's weights is."""
        own = (f"{name}.weight", f"{name}.weight{TRANSPOSED}")
        found = [
            i for i, node in enumerate(self.nodes) if node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in own
        ]
        return found[0] if len(found) == 1 and sum(value in own for node in self.nodes for value in node.input) == 1 else None

    def _reads(self, name: str) -> bool:
        return any(name in node.input for node in self.nodes)

    def _renamed(self, old: str, new: str) -> None:
        for node in self.nodes:
            for i, value in enumerate(node.input):
                if value == old:
                    node.input[i] = new


def _attributes(layer: nn.Conv2d) -> list[Any]:
    """The attributes of a convolution."""
    pads = [int(p) for p in layer.padding] * 2
    values = {
        "auto_pad": "NOTSET", "dilations": list(layer.dilation), "group": layer.groups,
        "kernel_shape": list(layer.kernel_size), "pads": pads, "strides": list(layer.stride),
    }  # fmt: skip
    return [helper.make_attribute(key, value) for key, value in values.items()]
