"""Tests of the deck's claims, each stated so that it can be confirmed or refuted."""
