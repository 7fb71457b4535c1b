"""Attention entropies, role indices and interventions: what the scripts in the root share.

Folders are floors; a folder imports only from those below it (`make lint` checks it):

    edits, documents             4
    capture, drawing, engines    3
    stats, models, runs          2
    inputs                       1    the standard library only
"""

import os
import sys

# numpy's BLAS and torch's OpenMP read these when they are first imported; a value set by the user
# stays. On a machine that is shared, threads that spin while they wait for one another cost far
# more than they bring: with one busy neighbour on two cores, capture of 120 prompts took 23 to 51 s
# with spinning threads and 3.2 s with threads that sleep, the comparison 8.6 s with two BLAS
# threads and 5.1 s with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Figures only go to files. matplotlib checks this when it is imported, so a value that it does not
# know would end every script that draws with a traceback.
os.environ["MPLBACKEND"] = "Agg"
# Bars are for a terminal. tqdm reads this when it is imported, so that the bars of libraries too
# (reading weights, converting a GGUF file) stay out of the log of a redirected run.
if sys.stderr is None or not sys.stderr.isatty():
    os.environ.setdefault("TQDM_DISABLE", "1")
