"""Runs a whole evaluation, from the request to the files in its folder."""

from spn_jax.config import Config
from spn_jax.drawing import figures
from spn_jax.errors import InputError
from spn_jax.evaluation import tables
from spn_jax.evaluation.methods import check_names, checked_settings, named, named_checkpoints, named_methods
from spn_jax.evaluation.options import COMPARED
from spn_jax.evaluation.report import (
    about_run,
    announcement,
    check_composites,
    check_outside_of_data,
    compare,
    lines_below,
    quote,
    remove_pictures,
    write_curves,
)
from spn_jax.evaluation.session import Request, open_evaluation, overrides_of, partial_results, results_of, score_all, with_checked_masks
from spn_jax.runtime.files import check_writable, write_atomically
from spn_jax.runtime.sharding import make_mesh


def evaluate(request: Request) -> None:
    """Scores checkpoints, folders of results and classical methods on the same pairs of photo and
    mask.
    """
    check_options(request)
    evaluation, output = open_evaluation(request), request.output
    if output is not None:
        check_outside_of_data(output, evaluation.config)
    evaluation = with_checked_masks(evaluation)
    quotation = quote(request, evaluation)
    composites = output if request.save_composites else None
    if composites is not None:
        check_composites(composites / "composites", evaluation)
    mesh = make_mesh()
    print(announcement(evaluation, mesh), flush=True)

    with partial_results(request, evaluation) as partial:
        score_all(evaluation, mesh, partial, composites)
        layout = "tenths" if request.bins == "tenths" else evaluation.layout
        results = results_of(evaluation, partial, layout)

        below = "\n" + "".join(f"* {line}\n" for line in lines_below(evaluation, results))
        text = tables.text_table(results, layout, quotation) + below
        print("\n" + text, flush=True)
        if output is None:
            return
        remove_pictures(output)
        latex = tables.latex_table(results, layout, quotation) + "".join(f"% {line}\n" for line in below.splitlines() if line)
        files: dict[str, str | bytes] = {
            "results.md": text,
            "results.tsv": tables.tsv_table(results, layout, quotation),
            "results.tex": latex,
            "results.json": tables.as_json(results, about_run(evaluation), layout, quotation),
        }
        for name, content in files.items():
            write_atomically(output / name, content)
        written = [*files, *(["composites"] if request.save_composites else [])]
        compared = COMPARED if request.grid is None and len(evaluation.methods) > 1 else request.grid or 0
        if compared:
            write_atomically(output / "grid.png", figures.png(compare(evaluation, mesh, compared)))
            written.append("grid.png")
        for model in evaluation.models:
            name = "loss_curves.png" if len(evaluation.models) == 1 else f"loss_curves-{model.name}.png"
            if write_curves(model.folder, output / name):
                written.append(name)
        partial.remove()
    print(f"written to {output}: {', '.join(sorted(written))}")


def check_options(request: Request) -> None:
    """Raises InputError for errors that can be detected before anything is read. Creates the output
    folder.
    """
    check_names(
        named_checkpoints(request.checkpoint),
        [named(text, "--results")[0] for text in request.results],
        list(named_methods(request.method)),
    )
    if request.grid is not None and request.grid < 0:
        raise InputError(f"--grid {request.grid} must not be negative; 0 draws no grid")
    checked_settings(Config(), overrides_of(request))
    if request.output is not None:
        check_writable(request.output)
    elif request.save_composites or request.grid:
        raise InputError("--save-composites and --grid write pictures; say where with --output DIR")
