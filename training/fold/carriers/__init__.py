"""Carriers: operators across which a gauge passes unchanged, but for an index map. One file a family, one table each.

Rules speak in laws (laws.py) and know no solver; none of them edits anything.
"""
