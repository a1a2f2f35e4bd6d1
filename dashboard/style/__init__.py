"""Colours, HTML that is safe to show, and notices.

Knows of no page and no record.
"""
