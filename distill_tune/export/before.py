"""What of a source will surprise somebody once it is shipped, found before anything is written."""

from collections.abc import Iterator

from distill_tune.counts import counted
from distill_tune.data.ends import exported_stops, named, stops_of
from distill_tune.errors import UserError
from distill_tune.export.source import Source
from distill_tune.models.decoder_config import language_model_config, read_config_json
from distill_tune.models.vocabulary import written_by
from distill_tune.qat.note import trained_for
from distill_tune.sizes import binary


def remarks(source: Source, to: str, holds_factors: bool = False) -> list[str]:
    """
    Args:
        to: the format.
        holds_factors: whether it has an adapter's factors alone.
    """
    found = [*_trained_for(source, to), *_parted(source, holds_factors), *_vocabulary(source), *_rope(source)]
    return found if holds_factors else [*found, *_ends(source)]


def _trained_for(source: Source, to: str) -> Iterator[str]:
    """Another format that the weights were trained for."""
    note = trained_for(source.folder)
    if note and ":" in to and note["fits"] != to.lower():
        yield f"the weights were trained with the rounding of {note['fits']}; {to} rounds otherwise, and loses that"


def _parted(source: Source, holds_factors: bool) -> Iterator[str]:
    """Embeddings and output layer that the base shares, and this model does not."""
    config = read_config_json(source.checkpoint.folder, "SOURCE")
    try:
        config = language_model_config(config)
    except UserError:
        return
    if not config.get("tie_word_embeddings") or source.decoder.tied_embeddings:
        return
    why = "the adapter changes one of them alone" if source.checkpoint.adapter else "the files have two"
    size = binary(source.vocab_size * source.decoder.embed_dim * source.dtype.itemsize)
    written = "peft puts it onto the base in the same way" if holds_factors else f"written apart, {size} more"
    yield (
        f"config.json ties the output layer to the embeddings, and here they part: {why}; {written}; a program that "
        "ties them all the same would lose what was trained"
    )


def _vocabulary(source: Source) -> Iterator[str]:
    rows, tokens = source.vocab_size, source.tokenizer.vocab_size
    if tokens < rows:
        yield f"{counted(rows - tokens, 'row')} of the vocabulary, from {tokens:,} on, are padding: no token has them"
    if tokens > rows:
        beyond = named(range(rows, min(tokens, rows + 3)), written_by(source.tokenizer))
        yield (
            f"the tokenizer has {counted(tokens - rows, 'token')} that the model has no row for ({beyond}): a text "
            "with one of them fails"
        )


def _rope(source: Source) -> Iterator[str]:
    config = source.config()
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    by_layer = [value for value in found.values() if isinstance(value, dict)] or [found]
    for parameters in by_layer:
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            factor = f" by {parameters['factor']:g}" if "factor" in parameters else ""
            yield (
                f"rope scaling {kind}{factor}: a program that does not know it answers worse the longer a text is; the "
                "comparison is on short rows"
            )


def _ends(source: Source) -> Iterator[str]:
    """Where tokenizer, template and the model's files end an answer, if not all alike."""
    tokenizer, folder = source.tokenizer, source.checkpoint.folder
    if tokenizer.spelled_end:
        yield (
            f"the chat template ends answers in {tokenizer.spelled_end}, which is no token of this tokenizer: programs "
            "that stop at tokens do not stop there"
        )
    found = {"the tokenizer's eos": {tokenizer.eos_id}}
    if tokenizer.template_end is not None:
        found["the chat template's end"] = {tokenizer.template_end}
    found |= {file: set(stops) for file, stops in stops_of(folder).items()}
    if len({frozenset(tokens) for tokens in found.values()}) > 1:
        names = written_by(tokenizer)
        told = ", ".join(f"{where} {named(sorted(tokens), names)}" for where, tokens in found.items())
        stops = named(exported_stops(tokenizer, folder, source.vocab_size), names)
        yield f"ends of an answer differ: {told}; config.json and generation_config.json are written with {stops}"
