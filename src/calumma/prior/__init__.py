"""Prior knowledge: collecting measurements of many workloads, and learning from them.

Nothing is imported here, so that a process which only loads weights does not load TVM.
"""
