"""Evaluation sets made from Tux Paint stamps: zero-shot classification and retrieval.

This package is data only. Each folder beside this file is one set in CLIP_benchmark's WebDataset
layout.
"""
