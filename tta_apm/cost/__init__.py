"""Cost: FLOPs, memory and time of each method, and the paper's Table 4 and Figure 2.

An annex: the kit does not import it.
"""
