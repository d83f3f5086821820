"""Which of the two ways of routed attention runs, and in what shape. No torch: FLOP counts ask too.

B batch, L length, G routing groups per sequence, N chapters read per group, T tokens per chapter,
U chapters given.
"""

from __future__ import annotations

MIN_BLOCK, MAX_BLOCK = 8, 64  # queries; small ones waste matrix units, large ones padding


def query_blocks(num_pairs: int, num_chapters: int) -> tuple[int, int]:
    """How many blocks hold ``num_pairs`` (query, chapter) pairs, and how many pairs each holds.

    A block serves one chapter, so each chapter may leave one partly empty. The number depends on
    no data: nothing waits for a device, nothing is compiled twice.
    """
    size = MIN_BLOCK
    while size < min(MAX_BLOCK, num_pairs / num_chapters):
        size *= 2
    return -(-num_pairs // size) + num_chapters, size


def moves_queries(
    batch: int, length: int, num_groups: int, num_read: int, num_tokens: int, num_chapters: int
) -> bool:
    """Whether copying queries to their chapters moves fewer rows than chapters to their queries.

    It does when groups are short: a chapter of T tokens is then copied for fewer than T queries.
    """
    num_blocks, size = query_blocks(batch * length * num_read, num_chapters)
    return num_blocks * size < batch * num_groups * num_read * num_tokens
