"""The JSON lines of samples, made for many at a time: a column of texts per value, woven with what is constant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from gateway.redaction import NOTHING, Rule, Rules, rules_for
from gateway.samples.cells import cells_of, summary_of
from gateway.samples.record import SCHEMA, Form, Sample, SampleGroup, table_of
from gateway.tensors import Signature, Tensors

_Cells = list[bytes]  # JSON texts of one column, one per line

# So many are joined at once. Joining notes 80 bytes for each of its pieces, and a line has 80 of them: a whole block
# would make that a megabyte, written and read again, and whatever else the core has in its cache would be gone.
_LINES_PER_PIECE = 16


def to_lines(sample: Sample, max_rows: int) -> list[bytes]:
    """The lines of one sample; see LineBuilder.lines."""
    return LineBuilder(max_rows).lines(sample)


def picked_rows(rows: int, max_rows: int) -> Sequence[int]:
    """Which rows of a request are written: all, or *max_rows* of them spread evenly over the request."""
    return range(rows) if rows <= max_rows else [index * rows // max_rows for index in range(max_rows)]


def _no_key() -> bytes:
    raise OSError("there is no key to hash with")


class LineBuilder:
    """Turns samples into lines, remembering the layout of each signature. Used by one thread.

    redact: rules by model, beside those of the samples. key: gives the key of the hashes when it is first needed; what
    it raises, `lines` and `block` raise.
    """

    # Versions come and go; a worker that has served more than this many starts to remember anew.
    _MAX_KEPT = 256

    def __init__(
        self, max_rows: int, redact: Mapping[str, Rules] | None = None, key: Callable[[], bytes] = _no_key
    ) -> None:
        self._max_rows = max_rows
        self._redact = redact or {}
        self._key = key
        # By identity, since hashing a signature costs more than building a line; the signature itself is kept in the
        # layout, so that its identity cannot be taken over by another one.
        self._layouts: dict[tuple[int, int, str], _Layout] = {}
        self._contexts: dict[tuple[Any, ...], bytes] = {}
        self._last_context: tuple[tuple[Any, ...], bytes] = ((), b"")
        self._last_end: tuple[tuple[Any, ...], bytes] = ((), b"")

    def lines_of(self, sample: Sample | SampleGroup) -> int:
        """How many lines are made of it."""
        return sample.predictions * min(sample.like.rows, self._max_rows)

    def lines(self, sample: Sample) -> list[bytes]:
        """One JSON object with a newline per written row, at most max_rows of them.

        NaN is written as null (missing), infinities as "Infinity" and "-Infinity". FP16 and FP32 values are written
        as the shortest decimal that reads back to the same 16 or 32 bits. An input or output that no feature or
        output column describes is written as a summary: datatype, shape, sha256. Raises ValueError and the like if
        the tensors are not what the signature says.
        """
        return self.block([sample]).splitlines(keepends=True)

    def block(self, samples: Sequence[Sample | SampleGroup]) -> bytes:
        """The lines of all *samples* in one piece, in their order; raises what `pieces` raises."""
        return b"".join(self.pieces(samples))

    def pieces(self, samples: Sequence[Sample | SampleGroup]) -> list[bytes]:
        """The lines of all *samples*, in their order, in pieces of several whole lines.

        Raises what `lines` raises for any of them, and then tells nothing of the others.
        """
        found: list[bytes] = []
        for alike in _alike(samples):
            texts, width = self._woven(alike)
            step = width * _LINES_PER_PIECE
            found += [b"".join(texts[at : at + step]) for at in range(0, len(texts), step)]
        return found

    def _woven(self, samples: Sequence[Sample | SampleGroup]) -> tuple[list[bytes], int]:
        """The texts of which the lines of samples that are alike consist, and how many make a line."""
        like = samples[0].like
        layout = self._layout(like)
        picks = picked_rows(like.rows, self._max_rows)
        some = picks if len(picks) < like.rows else None
        pairs = list(chain.from_iterable([sample.identities for sample in samples]))
        rows = like.rows * len(pairs)
        inputs = layout.columns(layout.inputs, _inputs_of(samples), rows, some)
        outputs = layout.columns(layout.outputs, _outputs_of(samples), rows, some)
        redacted = sorted({*layout.redact(inputs), *layout.redact(outputs)}) if layout.rules else ()
        prediction_ids, request_ids = map(_texts, zip(*pairs, strict=True))
        middles: _Cells = []
        tails: _Cells = []
        for sample in samples:
            count = sample.predictions * len(picks)
            middles += [b"%d%b" % (sample.like.ts_ns, self._context(sample.like))] * count
            tails += [self._tail(sample.like, redacted)] * count
        if len(picks) > 1:  # one sample
            prediction_ids, request_ids = prediction_ids * len(picks), request_ids * len(picks)
        numbers = [b"%d" % row for row in picks] * (rows // like.rows)
        before = layout.names(like.rows, inputs, outputs)
        cells = [prediction_ids, numbers, request_ids, middles, *inputs.values(), *outputs.values(), tails]
        return _weave(before, cells), 2 * len(cells)

    def _context(self, sample: Sample) -> bytes:
        """The middle of a line, from ``,"model"`` to the brace of the inputs: few different ones, made once each."""
        key = (sample.model, sample.version, sample.digest, sample.variant, sample.flag_revision, sample.variant_weight,
               sample.reason, sample.sample_rate, sample.sample_reason, sample.protocol)  # fmt: skip
        if key == self._last_context[0]:  # a comparison is less than a hash, and nearly all are the same
            return self._last_context[1]
        found = self._contexts.get(key)
        if found is None:
            if len(self._contexts) >= self._MAX_KEPT:
                self._contexts.clear()
            names = ("model", "version", "digest", "variant", "flag_revision", "variant_weight", "reason",
                     "sample_rate", "sample_reason", "protocol")  # fmt: skip
            text = orjson.dumps(dict(zip(names, key, strict=True)))
            found = self._contexts[key] = b"," + text[1:-1] + b',"inputs":{'
        self._last_context = (key, found)
        return found

    def _tail(self, sample: Sample, redacted: Sequence[str]) -> bytes:
        """The end of a line, from the brace of the outputs on."""
        key = (sample.cache, sample.error, redacted, sample.trace_id)
        if key != self._last_end[0]:
            told = {"cache": sample.cache, "error": sample.error, "redacted": redacted}
            if sample.trace_id:
                told["trace_id"] = sample.trace_id
            self._last_end = (key, orjson.dumps(told)[1:] + b"\n")
        return b'},"latency_us":{"queue":%d,"run":%d},"batch_rows":%d,%b' % (
            *(round(sample.queue_s * 1e6), round(sample.run_s * 1e6)),
            *(sample.batch_rows, self._last_end[1]),
        )

    def _layout(self, sample: Sample) -> _Layout:
        key = (id(sample.signature), id(sample.redact), sample.model)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= self._MAX_KEPT:
                self._layouts.clear()
            rules = rules_for(sample.model, sample.redact, self._redact, sample.signature.parts())
            needs_key = any(rule.kind == "hash" for rule in rules.values())
            secret = self._key() if needs_key else b""
            layout = self._layouts[key] = _Layout(sample.signature, sample.redact, rules, secret)
        return layout


def _alike(samples: Sequence[Sample | SampleGroup]) -> Iterator[list[Sample | SampleGroup]]:
    """Neighbours whose tensors can be put under one another: one row each, same layout, names, dtypes and shapes."""
    group: list[Sample | SampleGroup] = []
    first: tuple[Sample, Form] | None = None  # of the group; None if nothing can be put under it
    for sample in samples:
        like = sample.like
        form = sample.form if like.rows == 1 and like.signature.batchable else None
        if group and not (first is not None and form is not None and _fits(*first, like, form)):
            yield group
            group = []
        if not group:
            first = (like, form) if form is not None else None
        group.append(sample)
    if group:
        yield group


def _fits(mine: Sample, my_form: Form, its: Sample, its_form: Form) -> bool:
    return (
        my_form == its_form
        and mine.signature is its.signature
        and mine.redact is its.redact
        and mine.model == its.model
    )


def _inputs_of(samples: Sequence[Sample | SampleGroup]) -> Tensors:
    """The inputs of samples that are alike, under one another."""
    if len(samples) > 1 and isinstance(samples[0], SampleGroup):
        values: list[bytes] = []
        for sample in samples:
            if not isinstance(sample, SampleGroup):
                break
            values += sample.values
        else:
            spec = samples[0].spec
            return {spec.name: table_of(values, spec)}
    return _under_one_another([sample.inputs for sample in samples])


def _outputs_of(samples: Sequence[Sample | SampleGroup]) -> Tensors:
    return _under_one_another([sample.outputs for sample in samples])


def _under_one_another(tensors: Sequence[Tensors]) -> Tensors:
    if len(tensors) == 1:
        return tensors[0]
    return {name: np.concatenate([each[name] for each in tensors]) for name in tensors[0]}


def _texts(values: Sequence[str]) -> _Cells:
    """Each as JSON."""
    cells = orjson.dumps(values)[1:-1].split(b",")
    return cells if len(cells) == len(values) else [orjson.dumps(value) for value in values]  # there are commas in them


def _weave(before: Sequence[bytes], columns: Sequence[_Cells]) -> list[bytes]:
    """The cells line by line, each with the text that stands before it.

    Column by column into one list, by slices: that leaves the loop over the cells to the interpreter's own code.
    """
    width, lines = 2 * len(columns), len(columns[0])
    parts: list[bytes] = [b""] * width
    parts[::2] = before
    if lines == 1:
        parts[1::2] = [cells[0] for cells in columns]
        return parts
    parts *= lines
    for index, cells in enumerate(columns, 1):
        parts[2 * index - 1 :: width] = cells
    return parts


class _Columns:
    """The named columns of one tensor."""

    __slots__ = ("names", "positions")

    def __init__(self) -> None:
        self.names: list[str] = []
        self.positions: list[int] = []


class _Summaries(list[bytes]):
    """Cells of a tensor that is written as a summary."""


class _Layout:
    """Which column of which tensor has which name; tensors without an entry are summarized.

    rules: what is redacted, by name. secret: the key of the hashes.
    """

    __slots__ = ("_card", "_hidden", "_named", "_secret", "inputs", "outputs", "rules", "signature")

    def __init__(
        self, signature: Signature, card: Rules = NOTHING, rules: Rules = NOTHING, secret: bytes = b""
    ) -> None:
        self.signature = signature
        self.rules = rules
        self._card = card  # kept for its identity, as the signature is
        self._secret = secret
        self._named: tuple[tuple[Any, ...], list[bytes]] = ((), [])  # the last, since all requests look the same
        self.inputs: dict[str, _Columns] = {}
        self.outputs: dict[str, _Columns] = {}
        for feature in signature.features:
            _add(self.inputs, feature.input, feature.name, feature.column)
        for column in signature.output_columns():
            _add(self.outputs, column.output, column.name, column.index or 0)
        # Tensors with a value that is redacted: a summary of all of it would tell of that one.
        self._hidden = {
            tensor
            for side in (self.inputs, self.outputs)
            for tensor, columns in side.items()
            if tensor in rules or not rules.keys().isdisjoint(columns.names)
        }

    def columns(
        self, side: dict[str, _Columns], tensors: Tensors, rows: int, picks: Sequence[int] | None
    ) -> dict[str, _Cells]:
        """The cells by name, over all rows of samples that are alike."""
        found: dict[str, _Cells] = {}
        for tensor, array in tensors.items():
            whole = array.reshape(rows, -1) if array.size else array.reshape(rows, 0)
            if picks is not None:
                whole = whole[picks]
            columns = side.get(tensor)
            width = whole.shape[1]
            if (
                columns is None
                or max(columns.positions) >= width
                # Its first dimension is not the rows: the names do not fit the whole tensor.
                or (not self.signature.batchable and len(columns.names) != width)
            ):
                shape = array.shape[1:] if self.signature.batchable else array.shape
                found[tensor] = _Summaries(summary_of(row, shape) for row in whole)
                continue
            cells = cells_of(whole)
            for name, position in zip(columns.names, columns.positions, strict=True):
                found[name] = cells[position::width]
        return found

    def names(self, rows: int, inputs: Mapping[str, _Cells], outputs: Mapping[str, _Cells]) -> list[bytes]:
        """What stands before each cell of a line whose inputs and outputs have these names. rows: of the request."""
        key = (rows, *inputs, None, *outputs)
        if key != self._named[0]:
            before = [
                *(b'{"schema":%d,"prediction_id":' % SCHEMA, b',"row":', b',"rows":%d,"request_id":' % rows),
                b',"ts_ns":',
                *(b"%b%b:" % (b","[: bool(index)], orjson.dumps(name)) for index, name in enumerate(inputs)),
                *(b"%b%b:" % (b","[: bool(index)], orjson.dumps(name)) for index, name in enumerate(outputs)),
                b"",
            ]
            before[len(inputs) + 4] = b'},"outputs":{' + before[len(inputs) + 4]
            self._named = (key, before)
        return self._named[1]

    def redact(self, columns: dict[str, _Cells]) -> list[str]:
        """Put into the columns what may be written of them; returns the names that this concerns."""
        found = [name for name in self.rules if name in columns]
        for name in found:
            rule = self.rules[name]
            if rule.kind == "drop" or isinstance(columns[name], _Summaries):
                del columns[name]
            else:
                columns[name] = _replaced(rule, name, columns[name], self._secret)
        for name in self._hidden.intersection(columns):
            if isinstance(columns[name], _Summaries):
                del columns[name]
                found.append(name)
        return found


def _add(side: dict[str, _Columns], tensor: str, name: str, position: int) -> None:
    columns = side.setdefault(tensor, _Columns())
    columns.names.append(name)
    columns.positions.append(position)


def _replaced(rule: Rule, name: str, cells: _Cells, secret: bytes) -> _Cells:
    return [orjson.dumps(rule.replace(name, orjson.loads(cell), secret)) for cell in cells]
