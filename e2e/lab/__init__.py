"""A real Kubernetes control plane and virtual GPU servers on one machine, in a network of their own.

``python -m lab up`` starts one to work with, `lab.lab.Lab` starts one in a test.
"""
