"""The viewer's page, which Gradio shows in a browser. It loads nothing from other hosts."""

import html
import socket
from pathlib import Path
from typing import Any, Callable, Sequence

import fastapi
import gradio as gr
import numpy as np
import uvicorn

from dnnlib.util import UserError
from sampling import viewer
from sampling.images import default_layers
from sampling.viewer import Look, Model

_CSS = """
.pixels .image-frame, .pixels img { width: 100%; }
.pixels img { image-rendering: pixelated; max-height: 70vh; object-fit: contain; }
"""
_KEPT_SEC = 600     # How long Gradio keeps the files of pictures.


def serve(models: Sequence[Model], listening: socket.socket) -> None:
    """Serve the page until the program is interrupted.

    Args:
        models:    Networks for images of one size.
        listening: A listening socket, which browsers connect to.
    """
    app = gr.mount_gradio_app(
        fastapi.FastAPI(), build_page(models), path="/", css=_CSS, footer_links=[], run_history=False, ssr_mode=False,
        mcp_server=False, enable_monitoring=False)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listening])


def build_page(models: Sequence[Model]) -> gr.Blocks:
    """Build the page: tabs for seeds, mixing, interpolation and reconstruction, with a column for each network."""
    num_classes = viewer.count_classes(models)
    with gr.Blocks(title="GLeaD viewer", analytics_enabled=False, delete_cache=(_KEPT_SEC, _KEPT_SEC)) as page:
        with gr.Tab("Seeds"):
            with gr.Row():
                first = _seed("First seed", 0)
                count = gr.Slider(1, viewer.MAX_IMAGES, 4, step=1, label="Images")
                look = _look(num_classes)
            _pictures(page, models, viewer.seeds_picture, [first, count], look)
        with gr.Tab("Mix") as tab:
            with gr.Row():
                a, b, look = _seed("Seed A", 0), _seed("Seed B", 1), _look(num_classes)
            num_ws = max(model.G.num_ws for model in models)
            layers = gr.CheckboxGroup(list(range(num_ws)), value=default_layers(num_ws), type="index",
                                      label="Layers that are B's, 0 = the coarsest")
            gr.Markdown("From left to right: A, B, A with B's styles in these layers.")
            _pictures(tab, models, viewer.mix_picture, [a, b, layers], look)
        with gr.Tab("Interpolate") as tab:
            with gr.Row():
                a, b, look = _seed("Seed A", 0), _seed("Seed B", 1), _look(num_classes)
                space = gr.Radio(["w", "z"], value="w", label="Interpolate in")
            position = gr.Slider(0, 1, 0.5, step=0.01, label="From A to B")
            _pictures(tab, models, viewer.path_picture, [a, b, position, space], look)
        with gr.Tab("Rebuild"):
            _rebuild(models)
    return page


def _seed(label: str, value: int) -> gr.Number:
    return gr.Number(value, label=label, precision=0, min_width=100)


def _look(num_classes: int) -> list[gr.Component]:
    """The controls of a `Look`."""
    return [gr.Slider(0, 1.5, 1, step=0.05, label="Truncation psi"),
            gr.Number(0, label=f"Class, 0 to {num_classes - 1}", precision=0, min_width=100, visible=num_classes > 0)]


def _pictures(
    shown_by: Any, models: Sequence[Model], draw: Callable[..., np.ndarray], controls: list[gr.Component],
    look: list[gr.Component],
) -> None:
    """A picture of each network, drawn when its tab is opened or a control changes."""
    pictures = []
    with gr.Row():
        for model in models:
            with _column(model):
                pictures.append(_picture(model))
    opened = shown_by.load if isinstance(shown_by, gr.Blocks) else shown_by.select

    def draw_all(*values: Any) -> list[np.ndarray]:
        chosen, (psi, class_idx) = values[:len(controls)], values[len(controls):]
        return [_plain(draw(model, *chosen, Look(psi, class_idx))) for model in models]

    _on([opened, *(control.change for control in [*controls, *look])], draw_all, [*controls, *look], pictures)


def _rebuild(models: Sequence[Model]) -> None:
    """A place to drop images, and their reconstructions by each network."""
    able = [model for model in models if model.rebuilder is not None]
    files = gr.File(file_count="multiple", file_types=["image"], label="Images: drop them here, or click",
                    visible=bool(able))
    gr.Markdown("D reads the images above; below each is what G rebuilds of what D has read.", visible=bool(able))
    outputs: list[gr.Component] = []
    with gr.Row():
        for model in models:
            with _column(model):
                if model.rebuilder is None:
                    gr.Textbox(model.no_rebuilder, label="No reconstructions", lines=2)
                else:
                    outputs += [_picture(model), gr.Textbox(label="Errors", lines=2)]

    def rebuild_all(paths: list[str] | None) -> list[Any]:
        if not paths:
            return [None] * len(outputs)
        try:
            found = [viewer.rebuilt_picture(model, paths) for model in able]
        except UserError as e:
            message = str(e)
            for path in paths:      # hide Gradio's temporary folder, which users don't know
                message = message.replace(path, Path(path).name)
            raise UserError(message) from e
        return [value for pixels, text in found for value in (_plain(pixels), text)]

    if able:
        _on([files.change], rebuild_all, [files], outputs)


def _on(
    triggers: list[Any], function: Callable[..., list[Any]], inputs: list[gr.Component], outputs: list[gr.Component]
) -> None:
    """Run the function when one of the triggers fires. Its UserErrors are shown on the page."""
    def answer(*values: Any) -> Any:
        try:
            found = function(*values)
        except UserError as e:
            raise gr.Error(str(e), print_exception=False) from e
        return found[0] if len(found) == 1 else found

    gr.on(triggers, answer, inputs, outputs, show_progress="hidden", trigger_mode="always_last",
          concurrency_limit=1, concurrency_id="networks", api_visibility="private")


def _column(model: Model) -> gr.Column:
    """A column with the name of the model as its heading."""
    column = gr.Column(min_width=140)
    with column:
        gr.HTML(f"<h2>{html.escape(model.name)}</h2>", padding=False)
    return column


def _picture(model: Model) -> gr.Image:
    return gr.Image(show_label=False, format="png", interactive=False, elem_classes="pixels", min_width=140,
                    buttons=[], alt_text=f"Images of {model.name}")


def _plain(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
