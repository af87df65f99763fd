"""A server's PCIe tree as a picture: which GPUs and SSDs are neighbours, how wide the way is, what is wrong. Pure.

Boxes in boxes are the tree: a NUMA node, its host bridges, the switches below, the cards of GPUs and SSDs. Neighbours
on one switch or bridge are drawn in one frame; any other pair is a line, through room that is kept for it, with its
badge in the innermost box that holds both. No viewer is asked for its fonts: text is measured by the widest of the
usual ones, DejaVu Sans, and cut to fit.

`boxes` makes the tree, `content` says what stands on its parts, `layout` finds their places, `routing` and `channels`
the ways of lines between them, `drawing` and `foot` draw all with `ink`; `words` and `looks` have texts and colours.
"""

from __future__ import annotations

from kubeflash.cli.picture.drawing import draw

__all__ = ["draw"]
