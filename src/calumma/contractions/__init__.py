"""Operator families that sum products, each with a design space: convolutions, matrix products, recurrent layers."""
