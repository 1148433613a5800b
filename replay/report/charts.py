# SPDX-License-Identifier: Apache-2.0
"""The charts of a report. They are drawn when the report is made, so a page needs no script.

altair makes the specification, vl-convert the SVG or PNG. The colours are those of Okabe and Ito:
colour-blind people can tell them apart, and they stand out from white and from black. The page sets the
colours of text and lines.
"""

from __future__ import annotations

import re
from typing import Any, Final

import polars as pl

from replay.errors import ReplayError

COLOURS: Final = {
    "baseline": "#7f8790",
    "v6.1": "#a0a6ad",
    "anon-batch": "#56a8d8",
    "v1": "#3f6fb5",
    "v2": "#1f77c9",
    "folio-batch": "#dd8a00",
    "v6.12": "#5aa469",
    "mainline": "#0a9a6c",
}
OTHER_COLOUR: Final = "#b45c9e"
TYPES: Final = {"anon": "#1f77c9", "file": "#dd8a00", "shmem": "#b45c9e", "hugetlb": "#0a9a6c"}
"""Types of memory (see `inspect.classified`) and their colours."""

WIDTH: Final = 330
"""The width of one chart in pixels."""


def bars(frame: pl.DataFrame, title: str) -> Any:
    """A bar for each algorithm. frame: columns `algorithm count label`."""
    alt = _altair()
    base = alt.Chart(_rows(frame), title=title)
    order = frame["algorithm"].to_list()
    y = alt.Y("algorithm:N", sort=order, title=None, axis=alt.Axis(ticks=False, grid=False, labelPadding=6))
    most = max(int(frame["count"].max() or 0), 1)  # type: ignore[arg-type]
    x = alt.X("count:Q", axis=None, scale=alt.Scale(domain=[0, most * 2.5]))
    drawn = base.mark_bar(height=14).encode(x=x, y=y, color=_algorithms(order))
    labels = base.mark_text(align="left", dx=4, fontSize=11).encode(x=x, y=y, text="label:N")
    return (drawn + labels).properties(width=WIDTH, height=22 * len(order) + 30)


def curves(frame: pl.DataFrame, title: str, ticks: list[int]) -> Any:
    """A line for each algorithm over folio orders. frame: columns `algorithm order count`."""
    alt = _altair()
    names = frame["algorithm"].unique(maintain_order=True).to_list()
    x = alt.X("order:Q", title="folio order", axis=alt.Axis(values=ticks, grid=False, format="d"))
    y = alt.Y("count:Q", title=None, axis=alt.Axis(format="~s", tickCount=4), scale=alt.Scale(domainMin=0))
    base = alt.Chart(_rows(frame), title=title).encode(
        x=x,
        y=y,
        color=_algorithms(names, legend=True),
        shape=alt.Shape("algorithm:N", sort=names, legend=None),
        strokeDash=alt.StrokeDash("algorithm:N", sort=names, legend=None),
    )
    lines = base.mark_line(strokeWidth=2)
    points = alt.Chart(_rows(frame)).encode(
        x=x, y=y, color=_algorithms(names), shape=alt.Shape("algorithm:N", sort=names, legend=None)
    )
    return (lines + points.mark_point(size=36, filled=True)).properties(width=WIDTH, height=220)


def memory(frame: pl.DataFrame, title: str) -> Any:
    """Bars of the memory that folios add. frame: columns `order mib label`."""
    alt = _altair()
    base = alt.Chart(_rows(frame), title=title)
    most = max(float(frame["mib"].max() or 0), 1.0)  # type: ignore[arg-type]
    x = alt.X("order:O", title="folio order", axis=alt.Axis(labelAngle=0, grid=False))
    y = alt.Y("mib:Q", title=None, axis=alt.Axis(tickCount=4), scale=alt.Scale(domain=[0, most * 1.15]))
    drawn = base.mark_bar(color=OTHER_COLOUR).encode(x=x, y=y)
    labels = base.mark_text(dy=-7, fontSize=10).encode(x=x, y=y, text="label:N")
    return (drawn + labels).properties(width=WIDTH, height=220)


def orders(frame: pl.DataFrame, title: str) -> Any:
    """Memory by folio order, stacked by type. frame: columns `type order mib`."""
    alt = _altair()
    found = [name for name in TYPES if name in frame["type"].to_list()]
    colours = alt.Scale(domain=found, range=[TYPES[name] for name in found])
    return (
        alt.Chart(_rows(frame), title=title)
        .mark_bar()
        .encode(
            x=alt.X("order:O", title="folio order", axis=alt.Axis(labelAngle=0, grid=False)),
            y=alt.Y("mib:Q", title=None, axis=alt.Axis(tickCount=4, format="~s")),
            color=alt.Color("type:N", scale=colours, legend=_legend(alt)),
        )
        .properties(width=2 * WIDTH, height=250)
    )


def side_by_side(charts: list[Any], columns: int = 2) -> Any:
    """Several charts as one picture."""
    alt = _altair()
    return alt.concat(*charts, columns=columns).resolve_scale(color="independent")


def svg(chart: Any) -> str:
    """A chart as SVG for a page, without ids and without text colours of its own."""
    text = _converter().vegalite_to_svg(_configured(chart, page=True))
    # a page must not have an id twice, nor load anything
    return re.sub(r'\s(?:id|xmlns:xlink)="[^"]*"', "", str(text))


def picture(chart: Any, ending: str) -> bytes:
    """A chart as a file of its own, on white: `svg` or `png`."""
    spec = _configured(chart, page=False)
    if ending == "svg":
        return str(_converter().vegalite_to_svg(spec)).encode()
    return bytes(_converter().vegalite_to_png(spec, scale=2))


def _configured(chart: Any, *, page: bool) -> str:
    if page:
        # width and height are those of the whole picture
        chart = chart.properties(autosize=_altair().AutoSizeParams(type="fit", contains="padding"))
    font = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
    done = (
        chart.configure(background="transparent" if page else "white", font=font, padding=5 if page else 15)
        .configure_view(stroke=None)
        .configure_axis(
            grid=True, gridOpacity=0.5, domain=False, tickSize=3, labelFontSize=11, titleFontSize=11
        )
        .configure_title(anchor="start", fontSize=13, fontWeight=600, offset=8)
    )
    return str(done.to_json())


def _rows(frame: pl.DataFrame) -> Any:
    alt = _altair()
    return alt.Data(values=frame.to_dicts())


def _algorithms(names: list[str], *, legend: bool = False) -> Any:
    alt = _altair()
    scale = alt.Scale(domain=names, range=[COLOURS.get(name, OTHER_COLOUR) for name in names])
    return alt.Color("algorithm:N", sort=names, scale=scale, legend=_legend(alt) if legend else None)


def _legend(alt: Any) -> Any:
    return alt.Legend(orient="bottom", title=None, labelFontSize=11, symbolType="square", columns=4)


def check() -> None:
    """Raise `ReplayError` if charts cannot be drawn."""
    _altair()
    _converter()


def _altair() -> Any:
    try:
        import altair
    except ImportError:
        raise ReplayError(MISSING) from None
    return altair


def _converter() -> Any:
    try:
        import vl_convert
    except ImportError:
        raise ReplayError(MISSING) from None
    return vl_convert


MISSING: Final = "charts need altair and vl-convert: pip install 'mm-replay[html]'"
