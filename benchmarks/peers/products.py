"""The arithmetic: how many products (a multiplication and an addition) the floor takes, and the norms on top of it.

Everything is counted a sequence of T tokens of which R predict a response token. Products of attention scores and values are counted
once for each pair of tokens that a causal mask leaves.
"""

from dataclasses import dataclass

from peers.case import Sizes


@dataclass(frozen=True, slots=True)
class Group:
    """Matrices of a layer that read one input: `d_in` features in, `d_outs` out."""

    d_in: int
    d_outs: tuple[int, ...]

    @property
    def parameters(self) -> int:
        return self.d_in * sum(self.d_outs)

    def outer(self, T: int) -> int:
        """‖BᵀA‖² of every matrix by way of the gradient."""
        return T * self.parameters

    def gram(self, T: int) -> int:
        """⟨AAᵀ, BBᵀ⟩ of every matrix, AAᵀ once, symmetric matrices by one triangle."""
        return T * (T + 1) // 2 * (self.d_in + sum(self.d_outs))

    def norms(self, T: int) -> int:
        """By the form with fewer products."""
        return min(self.outer(T), self.gram(T))


def groups(sizes: Sizes, top: bool = False) -> tuple[list[Group], list[Group]]:
    """A layer's groups: those that run on all T positions, and, in the top layer, those that run on the R alone."""
    hidden, queries, keys = sizes.hidden, sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    after = [Group(queries, (hidden,)), Group(hidden, (sizes.ffn, sizes.ffn)), Group(sizes.ffn, (hidden,))]
    if top:
        return [Group(hidden, (keys, keys))], [Group(hidden, (queries,)), *after]
    return [Group(hidden, (queries, keys, keys)), *after], []


@dataclass(frozen=True, slots=True)
class Products:
    """Products of one sequence: of the plain floor and of the norms by each form and by the cheaper one of each group; and both again
    where only that is computed which the loss or a norm needs."""

    floor: int
    outer: int
    gram: int
    norms: int
    needed_floor: int
    needed_norms: int

    @property
    def plain_ratio(self) -> float:
        """The least multiple of the floor for a pass that treats all layers alike."""
        return (self.floor + self.norms) / self.floor

    @property
    def needed_ratio(self) -> float:
        """The least multiple of the plain floor for a pass that leaves out what neither the loss nor a norm needs."""
        return (self.needed_floor + self.needed_norms) / self.floor


def count(sizes: Sizes, T: int, R: int) -> Products:
    """The products of a model of `sizes`; forward and input-only backward take one product a weight and token each."""
    plain, _ = groups(sizes)
    top_all, top_rows = groups(sizes, top=True)
    head = 2 * R * sizes.hidden * sizes.vocabulary
    # Forward: scores and values, T²/2 each; backward: two gradients of each.
    attention = 3 * T * (T + 1) * sizes.heads * sizes.head_dim
    below = sizes.layers - 1
    weights = sum(group.parameters for group in plain)
    # In the top layer, positions without a target give keys and values to the others and nothing else.
    top_weights = T * sum(g.parameters for g in top_all) + R * sum(g.parameters for g in top_rows)
    # Nothing lies below the first layer's queries, keys and values whose gradient a norm would need.
    first = T * plain[0].parameters if below else T * top_all[0].parameters + R * top_rows[0].parameters
    return Products(
        floor=sizes.layers * (2 * T * weights + attention) + head,
        outer=sizes.layers * sum(group.outer(T) for group in plain),
        gram=sizes.layers * sum(group.gram(T) for group in plain),
        norms=sizes.layers * sum(group.norms(T) for group in plain),
        needed_floor=below * (2 * T * weights + attention) + 2 * top_weights + attention * R // T + head - first,
        needed_norms=below * sum(g.norms(T) for g in plain) + sum(g.norms(T) for g in top_all) + sum(g.norms(R) for g in top_rows),
    )


def bound_table(architectures: dict[str, Sizes], lengths: list[int], share: float) -> str:
    """Markdown: for each model and T, what the norms add at least, in multiples of the plain floor."""
    lines = [
        "| model | T | R | outer | Gram | cheaper form of each group | the same, only what is needed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, sizes in architectures.items():
        for T in lengths:
            R = max(1, round(share * T))
            products = count(sizes, T, R)
            outer, gram = ((products.floor + norms) / products.floor for norms in (products.outer, products.gram))
            lines.append(
                f"| {name} | {T} | {R} | {outer:.3f} | {gram:.3f} | {products.plain_ratio:.3f} | {products.needed_ratio:.3f} |"
            )
    return "\n".join(lines)
