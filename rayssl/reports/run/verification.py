"""The section of a report about speaker verification: cards, the table of results, pictures, and the map."""

from __future__ import annotations

from rayssl.reports.content import Block, Column, Figure, Grid, Picture, Row, Section, Table, text
from rayssl.reports.run import classification
from rayssl.reports.run.reading import Record, Run, is_number, is_staging
from rayssl.reports.run.unevaluated import not_evaluated

FEW_SPEAKERS = 10  # an interval over fewer says next to nothing of other speakers
_CAPTIONS = {
    "det": "Probit axes. Closer to the lower left is better; a straight line means normally distributed scores. The "
    "diamond and the square mark the minima of the two normalised costs.",
    "histogram": "The less the two overlap, the lower the error. The dotted line is the threshold at which both error "
    "rates are equal.",
    "map": "A sample of utterances in two dimensions by t-SNE. Coloured by speaker (colour and marker), each speaker "
    "should be a separate island. Coloured by recording, colours should mix inside an island: separate patches of one "
    "colour mean that the embedding separates recordings, not only speakers. Distances between islands have no "
    "meaning.",
}


def cards(run: Run) -> list[tuple[str, str]]:
    """The value and text of each main figure, from the first result."""
    found = []
    for result in run.verified[:1]:
        if is_number(result.get("eer")):
            found.append((f"{100 * result['eer']:.2f} %", f"EER on the ROC convex hull{_said_interval(result)}"))
        if is_number(result.get("eer_nearest")):
            found.append((f"{100 * result['eer_nearest']:.2f} %", "EER as max(FPR, FNR) where they are nearest"))
        for name, p_target in (("min_dcf_001", 0.01), ("min_dcf_005", 0.05)):
            if is_number(result.get(name)):
                found.append((f"{result[name]:.3f}", f"minDCF at p = {p_target}"))
        if is_number(result.get("trials")):
            targets = f", {int(result['targets']):,} of them target" if is_number(result.get("targets")) else ""
            speakers = f", of {int(result['speakers']):,} speakers" if is_number(result.get("speakers")) else ""
            found.append((f"{int(result['trials']):,}", f"trials{targets}{speakers}"))
    return found


def meaningless(result: Record) -> str | None:
    """Why the interval of the EER says nothing; None if it says something, or if there is none."""
    low, high, speakers = (result.get(key) for key in ("eer_low", "eer_high", "speakers"))
    if not is_number(low) or not is_number(high):
        return None
    of = f"trials of {int(speakers)} speakers" if speakers is not None and is_number(speakers) else "so few speakers"
    if low == high:
        return (
            f"The interval of the EER is a single point: {of} give the same figure in every resample. It says nothing "
            f"about other speakers. Evaluate on at least {FEW_SPEAKERS}, better hundreds."
        )
    if speakers is not None and is_number(speakers) and speakers < FEW_SPEAKERS:
        return f"The interval of the EER rests on {of}: it is far too narrow for what other speakers would give."
    return None


def sections(run: Run, drawn: dict[str, Picture]) -> list[Section]:
    """The sections about verification and about embeddings; none for a run that only does something else."""
    title = "Speaker verification"
    if not run.verified and not run.scores:
        if classification.is_classification(run) or is_staging(run):
            return [_map(run, drawn)]
        return [Section(title, [not_evaluated(run)]), _map(run, drawn)]
    blocks: list[Block] = []
    blocks += [text(said, "problem") for said in dict.fromkeys(map(meaningless, run.verified)) if said]
    blocks += [_results_table(run.verified)] if run.verified else []
    if "det" in drawn:
        blocks.append(Grid([Figure(drawn[name], _CAPTIONS[name]) for name in ("det", "histogram")]))
    else:
        blocks.append(text("There are no scored trials to draw (evaluation/scores.parquet)."))
    return [Section(title, blocks), _map(run, drawn)]


def _said_interval(result: Record) -> str:
    if not (is_number(result.get("eer_low")) and is_number(result.get("eer_high"))):
        return ""
    if result["eer_low"] == result["eer_high"]:
        return "; its interval says nothing, see below"
    return f", 95 % interval over speakers {100 * result['eer_low']:.2f} to {100 * result['eer_high']:.2f} %"


def _results_table(results: list[Record]) -> Table:
    speakers = any(is_number(result.get("speakers")) for result in results)
    counts = ("trials", "targets", *(("speakers",) if speakers else ()))
    rows = []
    for result in results:
        bounds = [100 * result[key] if is_number(result.get(key)) else None for key in ("eer_low", "eer_high")]
        rows.append(
            Row([
                *(str(result.get(key) or "-") for key in ("checkpoint", "norm")),
                f"{100 * result['eer']:.2f}" if is_number(result.get("eer")) else "-",
                f"{bounds[0]:.2f} to {bounds[1]:.2f}" if None not in bounds else "-",
                f"{100 * result['eer_nearest']:.2f}" if is_number(result.get("eer_nearest")) else "-",
                *(f"{result[key]:.3f}" if is_number(result.get(key)) else "-"
                  for key in ("min_dcf_001", "min_dcf_005")),
                *(f"{int(result[key]):,}" if is_number(result.get(key)) else "-"
                  for key in counts),
            ])
        )  # fmt: skip
    heads = [
        "EER % (ROC convex hull)",
        "95 % interval",
        "EER % (max of FPR and FNR)",
        "minDCF p = 0.01",
        "minDCF p = 0.05",
        "Trials",
        "Targets",
    ]
    heads += ["Speakers"] if speakers else []
    columns = [Column("Checkpoint"), Column("Score normalisation"), *(Column(head, "number") for head in heads)]
    return Table("Results of speaker verification", columns, rows)


def _map(run: Run, drawn: dict[str, Picture]) -> Section:
    if "map" in drawn:
        return Section("Embeddings", [Figure(drawn["map"], _CAPTIONS["map"])])
    if run.verified or run.scores:
        said = "There is no map: it needs embeddings of utterances whose speakers are known."
        return Section("Embeddings", [text(said)])
    return Section("Embeddings", [])
