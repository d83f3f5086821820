"""Ways of routed attention, and a projection of chapters, made for a CPU's caches.

In: queries, keys and values (or a bank) and what each group reads. Out: what the queries read.
"""
