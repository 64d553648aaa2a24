"""Toy kinds of caches as a user would write them: one in bfloat16, and one of pages."""

import torch

from miniformer.model.cache.kv_cache import KVCache
from miniformer.model.cache.source import SourceCache
from miniformer.model.cache.storage import Columns
from miniformer.model.masks import Visibility


class Bfloat16Columns(Columns):
    """Storage in bfloat16, whatever the type of the model."""

    def __init__(self, shape, device, dtype):
        super().__init__(shape, device, torch.bfloat16)
        self.dtype = dtype

    def append(self, cache, keys, values):
        keys, values = super().append(cache, keys, values)
        return keys.to(self.dtype), values.to(self.dtype)


class Bfloat16Cache(KVCache):
    """Cache of half the size."""

    def make_layer(self, shape, window):
        return Bfloat16Columns(shape, self.device, self.dtype)


class PagedCache(SourceCache):
    """Cache that stores each row in pages from common storage; it shares no code with `KVCache`.

    A row has a list of pages. Padding takes no place, and a finished row frees its pages.
    """

    def __init__(self, spec, page_size=4):
        self.batch_size, self.capacity, self.dtype = spec.batch_size, spec.capacity, spec.dtype
        self.page_size, self.row_lengths = page_size, [0] * spec.batch_size
        self.pages = [[] for _ in range(spec.batch_size)]  # of each row, in order
        self.final_lengths = torch.full((spec.batch_size, 1), spec.capacity)
        self.shape = (spec.kv_heads[0], page_size, spec.head_dim)
        self.storage = torch.zeros(len(spec.windows), 2, 0, *self.shape)  # keys and values
        self.free, self.new, self.pass_began = [], [], False

    @property
    def length(self):
        return max(self.row_lengths, default=0)

    @property
    def lengths(self):
        return torch.tensor(self.row_lengths, dtype=torch.long)

    @property
    def nbytes(self):
        return self.source_nbytes + self.storage.nbytes

    def extend(self, attention_mask, num_new):
        if attention_mask is None:
            attention_mask = torch.ones(self.batch_size, num_new, dtype=torch.bool)
        total = max((self.lengths + attention_mask.sum(1)).tolist(), default=0)
        if total > self.capacity:
            raise ValueError(f"{total} tokens do not fit a cache of capacity {self.capacity}")
        positions = self.lengths[:, None] + attention_mask.cumsum(1) - 1
        self.new = positions.masked_fill(~attention_mask, -1).tolist()
        for row, new in enumerate(self.new):
            self.allocate(row, max([*new, -1]) + 1)
        return positions.clamp_min(0)

    def visibility(self, layer, positions, window):
        keys = torch.arange(max([self.length, *(max([*new, -1]) + 1 for new in self.new)]))
        ends = torch.tensor(
            [max([n - 1, *new]) for n, new in zip(self.row_lengths, self.new, strict=True)]
        )
        return Visibility(True, window, positions, keys.where(keys <= ends[:, None], -1))

    def append(self, layer, keys, values):
        for row, new in enumerate(self.new):
            for column, position in enumerate(new):
                if position >= 0:
                    page = self.pages[row][position // self.page_size]
                    for kind, x in enumerate((keys, values)):
                        self.storage[layer, kind, page, :, position % self.page_size] = x[
                            row, :, column
                        ]
        width = max([self.length, *(max([*new, -1]) + 1 for new in self.new)])
        rows = [self.content(row)[layer] for row in range(self.batch_size)]
        padded = [torch.nn.functional.pad(x, (0, 0, 0, width))[:, :, :width] for x in rows]
        return tuple(torch.stack(padded).transpose(0, 1))

    def end_pass(self):
        self.row_lengths = [
            max([n, *(p + 1 for p in new)])
            for n, new in zip(self.row_lengths, self.new, strict=True)
        ]

    def reorder(self, rows, *, same_source=False):
        if rows.shape != (self.batch_size,):
            raise ValueError(f"rows must be int [{self.batch_size}], not {list(rows.shape)}")
        sources = self.cross_kv
        if same_source:
            self.cross_kv = None
        self.select(rows)
        if same_source:
            self.cross_kv = sources

    def select(self, rows, sources=None):
        lengths, contents = self.row_lengths, [self.content(row) for row in range(len(self.pages))]
        self.batch_size, self.final_lengths = len(rows), self.final_lengths[rows]
        self.pages, self.free = [[] for _ in rows], [*range(self.storage.shape[2])]
        self.row_lengths = [0 for _ in rows]
        for row, former in enumerate(rows.tolist()):
            self.write(row, contents[former], lengths[former])
        self.select_sources(rows if sources is None else sources)

    def trim(self, lengths):
        limits = torch.as_tensor(lengths).expand(self.batch_size).tolist()
        if min(limits, default=0) < 0:
            raise ValueError(f"lengths must be at least 0, not {min(limits)}")
        for row, limit in enumerate(limits):
            self.row_lengths[row] = min(limit, self.row_lengths[row])
            self.allocate(row, self.row_lengths[row])
        if self.length == 0:
            self.cross_kv = None

    def insert(self, rows, cache):
        if type(cache) is not PagedCache or len(rows) != cache.batch_size:
            raise ValueError("the rows of another cache cannot be inserted: it does not fit")
        self.insert_sources(rows, cache)
        for number, row in enumerate(rows.tolist()):
            self.write(row, cache.content(number), cache.row_lengths[number])
        self.final_lengths[rows] = cache.final_lengths

    def compact(self):
        """Rows have no padding."""

    def state_dict(self):
        state = {"lengths": self.lengths, "final": self.final_lengths.clone()}
        rows = {f"row.{n}": self.content(n)[:, :, :, :length].contiguous()
                for n, length in enumerate(self.row_lengths)}  # fmt: skip
        return {**state, **rows, **self.source_state()}

    def load_state_dict(self, state_dict):
        lengths = state_dict["lengths"].tolist()
        if len(lengths) != self.batch_size or max(lengths) > self.capacity:
            raise ValueError("the state is of another kind of cache or model")
        for row, length in enumerate(lengths):
            self.write(row, state_dict[f"row.{row}"], length)
        self.final_lengths = state_dict["final"]
        self.load_source_state(state_dict)

    def allocate(self, row, length):
        """Gives a row as many pages as `length` tokens need."""
        while len(self.pages[row]) * self.page_size > length + self.page_size - 1:
            self.free.append(self.pages[row].pop())
        while len(self.pages[row]) * self.page_size < length:
            if not self.free:
                self.free.append(self.storage.shape[2])
                page = torch.zeros(*self.storage.shape[:2], 1, *self.shape)
                self.storage = torch.cat((self.storage, page), 2)
            self.pages[row].append(self.free.pop())

    def content(self, row):
        """Keys and values of all pages of a row, [layers, 2, K, S, E]."""
        return self.storage[:, :, self.pages[row]].transpose(2, 3).flatten(3, 4)

    def write(self, row, content, length):
        """Replaces a row by a content."""
        self.allocate(row, length)
        for number, page in enumerate(self.pages[row]):
            part = content[..., number * self.page_size : (number + 1) * self.page_size, :]
            self.storage[:, :, page, :, : part.shape[3]] = part
        self.row_lengths[row] = length


KINDS = {"bfloat16": Bfloat16Cache, "paged": PagedCache}
