"""Decision trees as every library's reader gives them, and the ONNX operators that decide exactly as they do.

A tree is right only if each comparison is made in the number type in which its library makes it. Where that is double,
the input, the thresholds and the sums are double too: a threshold that is rounded to float32, up, down or to nearest,
sends some rows the other way. Operators of ai.onnx.ml 3 keep doubles in attributes that end in ``_as_tensor``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from gateway.tensors import Array

Rule = Literal["BRANCH_LEQ", "BRANCH_LT"]
Precision = Literal["float32", "float64"]
Link = Literal["identity", "sigmoid", "softmax", "exp", "square", "softplus"]

LEAF = -1
_ML_DOMAIN = "ai.onnx.ml"


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree; nodes are numbered, 0 is the root.

    feature: int64 [nodes], LEAF at leaves. threshold: float64 [nodes]. yes, no: int64 [nodes], the node to go on to if
    the feature's value is at most (or below, as the ensemble's rule says) the threshold, or else. missing_yes: bool
    [nodes], whether NaN goes on to yes. value: float64 [nodes, outputs], what a leaf adds to the targets from *target*
    on.
    """

    feature: Array
    threshold: Array
    yes: Array
    no: Array
    missing_yes: Array
    value: Array
    target: int = 0

    @property
    def is_leaf_only(self) -> bool:
        return bool(self.feature[0] == LEAF)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Trees whose leaves are summed, and what becomes of the sums.

    base: float64 [targets], what the sums begin with. compares: the type to which the library rounds a feature before
    it compares it. sums: the type in which it adds leaves up. link: from sums to what is answered; ``sigmoid`` of one
    target gives two columns. zero_is_missing: features whose zeros go where NaN goes; zero is what is at most
    *zero_within*. width: how many features a row has. averaged: each leaf was divided by the number of trees. parallel:
    how many trees of one target are grown in one round.
    """

    trees: Sequence[Tree]
    base: Array
    width: int
    rule: Rule
    compares: Precision
    sums: Precision
    link: Link = "identity"
    zero_is_missing: tuple[int, ...] = ()
    zero_within: float = 0.0
    averaged: bool = False
    parallel: int = 1

    @property
    def rounds(self) -> int:
        """How many rounds the trees were grown in: of boosting, or trees of a forest."""
        return len(self.trees) // self._trees_per_round

    @property
    def _trees_per_round(self) -> int:
        adds_to_all = all(tree.value.shape[1] == self.targets for tree in self.trees)
        return self.parallel * (1 if adds_to_all else self.targets)

    def first(self, rounds: int) -> Ensemble:
        """Only the trees of the first rounds; of an average they weigh more, so that it stays one."""
        trees = self.trees[: rounds * self._trees_per_round]
        if self.averaged:
            trees = [replace(tree, value=tree.value * (len(self.trees) / len(trees))) for tree in trees]
        return replace(self, trees=trees)

    @property
    def targets(self) -> int:
        return len(self.base)

    @property
    def is_wide(self) -> bool:
        """Whether the operator has to compute in double."""
        return "float64" in (self.compares, self.sums)

    def thresholds(self) -> dict[int, Array]:
        """By feature, its different finite thresholds in order."""
        feature = np.concatenate([tree.feature for tree in self.trees]) if self.trees else np.empty(0, np.int64)
        threshold = np.concatenate([tree.threshold for tree in self.trees]) if self.trees else np.empty(0)
        usable = (feature != LEAF) & np.isfinite(threshold)
        return {int(f): np.unique(threshold[usable & (feature == f)]) for f in np.unique(feature[usable])}


class Graph:
    """The nodes and constants of an ONNX graph while it is written. Names begin with *prefix*."""

    def __init__(self, prefix: str = "t_") -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._prefix = prefix

    def add(self, operator: str, *inputs: str, out: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name, which is *out* or a new one."""
        name = out or f"{self._prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def constant(self, value: Array) -> str:
        name = f"{self._prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def write_scores(graph: Graph, ensemble: Ensemble, rows: str, *, given: Precision, out: str) -> None:
    """Append what turns *rows*, [rows, width] of the type *given*, into float32 answers [rows, columns] named *out*."""
    if ensemble.link == "sigmoid" and ensemble.targets == 1:
        ensemble = _two_sided(ensemble)
    rows = _as_compared(graph, ensemble, rows, given)
    sums = graph.add(
        "TreeEnsembleRegressor",
        rows,
        domain=_ML_DOMAIN,
        out=out if ensemble.link == "identity" else None,
        **_attributes(ensemble),
    )
    if ensemble.link != "identity":
        _write_link(graph, ensemble, sums, out)


def write_labels(graph: Graph, probabilities: str, classes: Sequence[int | str], *, out: str) -> None:
    """Append what picks the class of the highest probability, of several the first one."""
    if list(classes) == list(range(len(classes))):
        graph.add("ArgMax", probabilities, axis=1, keepdims=0, out=out)
        return
    best = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
    if isinstance(classes[0], str):
        known = numpy_helper.from_array(np.array(classes, dtype=object))
        known.name = "t_classes"
        graph.constants.append(known)
        graph.add("Gather", known.name, best, axis=0, out=out)
    else:
        graph.add("Gather", graph.constant(np.array(classes, dtype=np.int64)), best, axis=0, out=out)


def _two_sided(ensemble: Ensemble) -> Ensemble:
    """The same with a sum for the first class too, which stays 0: the softmax of both is the sigmoid and its rest."""
    trees = [replace(tree, target=1) for tree in ensemble.trees]
    return replace(ensemble, trees=trees, base=np.concatenate([[0.0], ensemble.base]), link="softmax")


def _as_compared(graph: Graph, ensemble: Ensemble, rows: str, given: Precision) -> str:
    """The rows in the type of the operator, rounded as the library rounds them."""
    if given == "float64" and ensemble.compares == "float32":
        rows, given = graph.add("Cast", rows, to=TensorProto.FLOAT), "float32"
    if given == "float32" and ensemble.is_wide:
        rows = graph.add("Cast", rows, to=TensorProto.DOUBLE)
    if ensemble.zero_is_missing:
        dtype = np.float64 if ensemble.is_wide else np.float32
        mask = np.zeros((1, ensemble.width), dtype=bool)
        mask[0, list(ensemble.zero_is_missing)] = True
        near = graph.add("LessOrEqual", graph.add("Abs", rows), graph.constant(np.array(ensemble.zero_within, dtype)))
        hit = graph.add("And", near, graph.constant(mask))
        rows = graph.add("Where", hit, graph.constant(np.array(np.nan, dtype)), rows)
    return rows


def _attributes(ensemble: Ensemble) -> dict[str, Any]:
    """The operator's attributes."""
    trees = _grown(ensemble)
    feature = np.concatenate([tree.feature for tree in trees])
    leaf = feature == LEAF
    threshold = np.where(leaf, 0.0, np.concatenate([tree.threshold for tree in trees]))
    return {
        "n_targets": ensemble.targets,
        "aggregate_function": "SUM",
        "post_transform": "NONE",
        "nodes_treeids": np.repeat(np.arange(len(trees)), [len(tree.feature) for tree in trees]).tolist(),
        "nodes_nodeids": np.concatenate([np.arange(len(tree.feature)) for tree in trees]).tolist(),
        "nodes_featureids": np.where(leaf, 0, feature).tolist(),
        "nodes_modes": np.where(leaf, "LEAF", ensemble.rule).tolist(),
        "nodes_truenodeids": np.concatenate([tree.yes for tree in trees]).tolist(),
        "nodes_falsenodeids": np.concatenate([tree.no for tree in trees]).tolist(),
        "nodes_missing_value_tracks_true": np.concatenate([tree.missing_yes for tree in trees]).astype(int).tolist(),
        **_votes(trees, wide=ensemble.is_wide),
        **_numbers("nodes_values", threshold if ensemble.is_wide else _narrow(threshold, ensemble.rule)),
    }


def _grown(ensemble: Ensemble) -> list[Tree]:
    """The trees that decide something, in order. What is the same for all rows is in the leaves of one tree per target.

    ONNX Runtime has a base value for it, and forgets that where no tree adds to the target; others skip what comes
    after the sum for trees of one leaf.
    """
    base = np.array(ensemble.base, dtype=np.float64)
    trees: list[Tree] = []
    for tree in ensemble.trees:
        if tree.is_leaf_only:
            base[tree.target : tree.target + tree.value.shape[1]] += tree.value[0]
        else:
            trees.append(_in_order(tree))
    for index, tree in enumerate(trees):
        own = slice(tree.target, tree.target + tree.value.shape[1])
        if base[own].any():
            trees[index] = replace(tree, value=tree.value + base[own])
            base[own] = 0.0
    return trees + [_idle(target, base[target]) for target in np.flatnonzero(base).tolist()] or [_idle(0, 0.0)]


def _votes(trees: Sequence[Tree], *, wide: bool) -> dict[str, Any]:
    """What each leaf adds to which target."""
    tree_ids, node_ids, targets, weights = [], [], [], []
    for index, tree in enumerate(trees):
        leaves, outputs = np.flatnonzero(tree.feature == LEAF), tree.value.shape[1]
        tree_ids.append(np.full(len(leaves) * outputs, index))
        node_ids.append(np.repeat(leaves, outputs))
        targets.append(np.tile(np.arange(tree.target, tree.target + outputs), len(leaves)))
        weights.append(tree.value[leaves].ravel())
    return {
        "target_treeids": np.concatenate(tree_ids).tolist(),
        "target_nodeids": np.concatenate(node_ids).tolist(),
        "target_ids": np.concatenate(targets).tolist(),
        **_numbers("target_weights", np.concatenate(weights).astype(np.float64 if wide else np.float32)),
    }


def _numbers(name: str, values: Array) -> dict[str, Any]:
    """An attribute of floats, or the tensor that stands for one of doubles."""
    if values.dtype == np.float64:
        return {f"{name}_as_tensor": numpy_helper.from_array(values, name)}
    return {name: values.tolist()}


def _narrow(threshold: Array, rule: Rule) -> Array:
    """Thresholds as float32 which no float32 value tells from the doubles: rounded down for "at most", up for "below".

    This is right only because the library rounds the values to float32 itself.
    """
    with np.errstate(over="ignore"):
        narrow = threshold.astype(np.float32)
    wrong, toward = (narrow > threshold, -np.inf) if rule == "BRANCH_LEQ" else (narrow < threshold, np.inf)
    return np.where(wrong, np.nextafter(narrow, np.float32(toward)), narrow)


def _in_order(tree: Tree) -> Tree:
    """The same tree with its nodes numbered in the order of a walk, yes before no, without nodes that none leads to."""
    order: list[int] = []
    waiting = [0]
    while waiting:
        node = waiting.pop()
        order.append(node)
        if tree.feature[node] != LEAF:
            waiting += [int(tree.no[node]), int(tree.yes[node])]
    place = np.zeros(len(tree.feature), dtype=np.int64)
    place[order] = np.arange(len(order))
    leaf = tree.feature[order] == LEAF
    return Tree(
        tree.feature[order],
        tree.threshold[order],
        np.where(leaf, 0, place[tree.yes[order]]),
        np.where(leaf, 0, place[tree.no[order]]),
        np.where(leaf, False, tree.missing_yes[order]),
        tree.value[order],
        tree.target,
    )


def _idle(target: int, value: float) -> Tree:
    """A tree that adds the same to each row. It asks something, since trees of one leaf are not trusted."""
    ends = np.zeros(3, dtype=np.int64)
    return Tree(
        np.array([0, LEAF, LEAF]),
        np.zeros(3),
        ends + 1,
        ends + 2,
        ends.astype(bool),
        np.full((3, 1), value),
        target,
    )


def _write_link(graph: Graph, ensemble: Ensemble, sums: str, out: str) -> None:
    """Append what turns sums into answers."""
    if ensemble.link == "sigmoid":
        graph.add("Sigmoid", sums, out=out)
    elif ensemble.link == "softmax":
        graph.add("Softmax", sums, axis=1, out=out)
    elif ensemble.link == "exp":
        graph.add("Exp", sums, out=out)
    elif ensemble.link == "square":  # of a root whose sign was kept
        graph.add("Mul", sums, graph.add("Abs", sums), out=out)
    else:
        graph.add("Softplus", sums, out=out)
