"""Text as hostile as Unicode allows."""

from hypothesis import strategies as st

FRAGMENTS = st.sampled_from([
    " ", "  ", "    ", "\t", "\t\t", "\n", "\r\n", "\x00", "\x7f", "\u200d", "\ufeff", "e\u0301", "é", "👩‍👩‍👧", "🇩🇪",
    "日本", "<unk>", "<s>", "<|endoftext|>", "<0x0A>", "the ", " the", "fox jumps", "def f(x):", "123", "Ã©",
    "Ġthe", "ﬁ",
])  # fmt: skip
TEXT = st.lists(
    FRAGMENTS | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=8), max_size=8
).map("".join)
