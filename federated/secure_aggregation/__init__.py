"""Secure aggregation (SecAgg+): a server that learns the sum of clients' updates, and no update.

Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS)
over the sparse graph of Bell et al. 2020 ("Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", CCS). `Client` holds secrets, `Server` sees messages alone.
"""
