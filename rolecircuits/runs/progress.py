"""The bar of long work, on a terminal only: a log of a redirected run holds lines, no bars."""


def progress(total, title, unit, **more):
    """A progress bar on stderr, shown where that is a terminal and the work has a title.

    more  of tqdm's own: unit_scale
    """
    from tqdm import tqdm  # takes 0.08 s, and scripts import this module before they answer --help

    hidden = True if title is None else None  # None: hidden where stderr is no terminal
    return tqdm(total=total, desc=title, unit=unit, disable=hidden, leave=False, **more)
