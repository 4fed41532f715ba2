"""Tuning tasks: the distinct fused PrimFuncs of a model, what they cost, and what the machine could do at best."""

from calumma.tasks.extract import ModelTasks, extract, task_of, weight_bytes_of

__all__ = ["ModelTasks", "extract", "task_of", "weight_bytes_of"]
