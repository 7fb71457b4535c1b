"""The texts on which a model and its instruments are checked: one of at least 80 tokens, and short
ones for a padded batch.
"""

from rolecircuits.models.rotary import batch_side

CHECK_TEXT = (
    "How tall is the tower that stands beside the old bridge, and who built it for the town by "
    "the river? Nobody who lives there now can say, for the books were lost when the mill burned "
    "down one winter night, and the oldest people of the place only remember that their "
    "grandparents went up its narrow stairs on Sundays to see the boats come in with salt, wool "
    "and letters from the coast."
)
SHORT_TEXTS = ("Who is it?", "How tall is the tower now?", "How tall is it?")  # two begin alike


def check_batches(loaded):
    """[batch] of token ids: the long text, and the short ones where the context and the sides of
    rotary angles allow them to be together.
    """
    tokenizer = loaded.tokenizer
    limits = [limit for limit in (tokenizer.context, tokenizer.dense) if limit is not None]
    context = min(limits, default=len(CHECK_TEXT))
    long, *short = (
        loaded.tokenizer.hf(text, add_special_tokens=False).input_ids[:context]
        for text in (CHECK_TEXT, *SHORT_TEXTS)
    )
    loaded.tokenizer.check_ids(long, "instrument check: a text")
    if not 2 <= len(short[0]) < len(short[1]):
        short = [long[:2], long[1:5], long[1:3] + long[:1]]
    side = batch_side(loaded.facts)
    together = len({side(len(ids)) for ids in short}) == 1
    return [[long], short if together else short[:1]]


def streaming_batches(loaded):
    """[batch] of token ids: the long text with its first half, where they may share a batch.

    On a card also both of them alone and the text twice, where the context holds it: the kernel
    works in other tiles for texts of up to 64, of up to 128 and of more tokens.
    """
    long = check_batches(loaded)[0][0]
    half, side = long[: len(long) // 2], batch_side(loaded.facts)
    batches = [[long, half] if side(len(long)) == side(len(half)) else [long]]
    if str(loaded.facts.get("device")).startswith("cuda"):
        batches.append([half])
        limits = [n for n in (loaded.tokenizer.context, loaded.tokenizer.dense) if n is not None]
        if 2 * len(long) <= min(limits, default=2 * len(long)):
            batches.append([long * 2])
    return batches
