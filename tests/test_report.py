"""The tables of the documentation are those of the JSON files. Run: python -m pytest tests/test_report.py"""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest

from experiments import report, report_tables
from utils.carriers import Calibration
from utils.runs import RunError

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", report.pages(), ids=lambda page: page.name)
def test_no_page_is_out_of_date(page):
    assert report.filled(page) == page.read_text(), "run python -m experiments.report"


def test_a_changed_figure_is_noticed_and_mended(tmp_path, monkeypatch, capsys):
    for folder in ("docs", "weights", "experiments/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pt", "*.png"))
    shutil.copy(ROOT / "README.md", tmp_path)
    for module in (report, report_tables):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    file = tmp_path / "weights/amc_baseline.json"
    data = json.loads(file.read_text())
    data["sets"]["test"]["accuracy"] = 0.98765
    file.write_text(json.dumps(data))

    with pytest.raises(RunError, match="README.md.*python -m experiments.report"):
        report.main(["--check"])
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0
    for name in ("README.md", "docs/RESULTS.md", "weights/README.md"):
        assert ".9877" in (tmp_path / name).read_text()


def test_an_unknown_part_is_told(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- report: nothing --><!-- end -->\n")
    with pytest.raises(RunError, match="page.md asks for 'nothing'"):
        report.filled(page)


def test_decimal_figures_of_the_readme_stand_in_the_results():
    results = (ROOT / "docs/RESULTS.md").read_text()
    figures = set(re.findall(r"(?<![\w.])\.\d{2,}", (ROOT / "README.md").read_text()))
    assert figures and not [figure for figure in figures if figure not in results]


def test_the_quickstart_has_the_confidence_of_the_shipped_calibration():
    rows = [row for row in report.read(report.RESULTS / "quickstart.json")["rows"] if row]
    calibration = Calibration.beside(ROOT / "weights/seg_student.pt")
    printed = report.quickstart()
    assert rows
    for row in rows:
        assert f" {calibration.confidence(row['ground'], row['probability']):.2f} " in printed


def test_a_row_of_the_compression_table_is_the_mean_of_its_seeds(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "experiments/results/compression", tmp_path / "compression")
    row = json.loads((tmp_path / "compression/ours_299_k_kd_epochs3_seed0.json").read_text())
    row["seed"], row["sets"]["test"]["mean_iou"] = 7, row["sets"]["test"]["mean_iou"] - 0.02
    (tmp_path / "compression/ours_299_k_kd_epochs3_seed7.json").write_text(json.dumps(row))
    monkeypatch.setattr(report_tables, "RESULTS", tmp_path)
    scores = [row["sets"]["test"]["mean_iou"] + shift for shift in (0, 0.02)]
    (line,) = re.findall(r"^\| ours 299 K \| KD \| 3 \| 2 \|.*$", report.compression(), re.MULTILINE)
    mean, deviation = (float(figure) for figure in line.split(" | ")[9].split(" ± "))
    assert mean == pytest.approx(statistics.mean(scores), abs=6e-4)
    assert deviation == pytest.approx(statistics.stdev(scores), abs=6e-4)
