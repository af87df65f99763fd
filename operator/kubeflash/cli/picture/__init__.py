"""A server's PCIe tree as a picture: which GPUs and SSDs are neighbours, how wide the way is, what is wrong. Pure.

Boxes in boxes are the tree: a NUMA node, its host bridges, the switches below, the cards of GPUs and SSDs. Neighbours
are drawn in one frame; a pair that is further apart is a line, in a lane at the bottom of the innermost box that holds
both. No viewer is asked for its fonts: text is measured by the widest of the usual ones, DejaVu Sans, and cut to fit.

`boxes` makes the tree, `content` says what stands on its parts, `layout` finds their places, `drawing` and `foot` draw
them with `ink`; `words` and `looks` have texts and colours.
"""

from __future__ import annotations

from kubeflash.cli.picture.drawing import draw

__all__ = ["draw"]
