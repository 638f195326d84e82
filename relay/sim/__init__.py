"""Edges, hops and a gateway in one process under virtual time: for developers who want to see what weather does.

All of it is the product's own code over encrypted stores, but for the links (`transport.links.simulated`) and the
provider, which is scripted. This package is a composition root that may import every role; `relay sim` alone loads it.
"""
