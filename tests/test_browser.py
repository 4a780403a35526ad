"""What a person sees of a study in the MLflow UI, in a real browser.

Needs `pip install -e '.[browser]'` and Chromium with its driver (Debian: chromium, chromium-driver).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from conftest import PATIENCE, QUICK, datadiet

selenium = pytest.importorskip("selenium", reason="pip install -e '.[browser]'")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=2400,900")  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A finished study."""
    root = tmp_path_factory.mktemp("browser")
    small = {"score_types": "l2_error", "score_runs": 1, "eval_runs": 2, "fractions": 0.5, "workers": 1}
    datadiet("study", root, **QUICK | small)
    return root


@pytest.fixture(scope="module")
def address(root) -> Iterator[str]:
    """Of an MLflow UI over its store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{root}/mlflow.db"
    words = ["ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", store]
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(root / "ui.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], cwd=root, env=settings, stdout=log,
                                  stderr=log, start_new_session=True)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=PATIENCE).close()
                break
            except OSError:
                assert server.poll() is None, (root / "ui.log").read_text()
                assert time.monotonic() < end, f"no answer within {PATIENCE} seconds"
                time.sleep(0.1)
        yield url
    finally:
        os.killpg(server.pid, 15)
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator:
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    yield driver
    driver.quit()


def seen(browser, url: str, *texts: str) -> str:
    """The text of a page once it shows all of `texts`."""
    browser.get(url)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        shown = browser.find_element("tag name", "body").text
        if all(text in shown for text in texts):
            return shown
        time.sleep(0.2)
    pytest.fail(f"{url} does not show {[text for text in texts if text not in shown]}:\n{shown}")


def run_named(name: str) -> mlflow.entities.Run:
    found = mlflow.search_runs(experiment_names=["datadiet"], output_format="list")
    return next(run for run in found if run.info.run_name == name)


def test_the_experiment_lists_the_study(root, address, browser):
    study = run_named("study")
    seen(browser, f"{address}/#/experiments/{study.info.experiment_id}/runs", "study", "digits")


def test_a_study_shows_what_it_is_and_its_results(root, address, browser):
    study = run_named("study")
    page = f"{address}/#/experiments/{study.info.experiment_id}/runs/{study.info.run_id}"
    seen(browser, page, "Study of mlp on digits", "cfg.fractions", "study/random/50pct", "Finished")
    seen(browser, f"{page}/artifacts", "report.html", "results.csv", "figures")


def test_a_training_shows_its_options_data_and_accuracy(root, address, browser):
    study = run_named("study")
    child = run_named("study/random/size_719/run_1")
    assert child.data.tags["mlflow.parentRunId"] == study.info.run_id
    page = f"{address}/#/experiments/{study.info.experiment_id}/runs/{child.info.run_id}"
    told = "mlp on 719 of 1,438 examples of digits"
    seen(browser, page, "study/random/size_719/run_1", told, "cfg.model_seed", "test_acc")


def test_the_view_of_an_experiment_has_a_row_for_a_study_with_its_numbers_and_answer(root, address, browser):
    study = run_named("study")
    view = f"{address}/#/experiments/{study.info.experiment_id}/runs?viewStateShareKey=datadiet"
    shown = seen(browser, view, "study", "decision/kept_fraction", "decision/accuracy_full", "datadiet.decision.answer")
    assert "not decided" in shown
    assert "study/random" not in shown, "its trainings are below it"


def test_the_view_of_a_study_has_a_row_for_each_arm_with_the_same_columns(root, address, browser):
    study = run_named("study")
    view = f"{address}/#/experiments/{study.info.experiment_id}/runs?viewStateShareKey=datadiet-{study.info.run_id}"
    arms = [f"datadiet.arm: {arm}, datadiet.fraction: 0.5" for arm in ("keep_max l2_error", "random")]
    shown = seen(browser, view, *arms, "decision/kept_fraction", "datadiet.decision.answer")
    assert f"{study.data.metrics['study/random/50pct']:.6f}"[:8] in shown
    assert "study/random/size_719/run_1" not in shown, "groups are closed"


def test_charts_of_a_study_begin_with_accuracy_against_what_is_kept(root, address, browser):
    study = run_named("study")
    page = f"{address}/#/experiments/{study.info.experiment_id}/runs/{study.info.run_id}/model-metrics"
    shown = seen(browser, page, "keep_max_l2_error", "(accuracy/keep_max_l2_error)")
    assert shown.index("(accuracy/keep_max_l2_error)") < shown.index("decision")


WIDE = "return [...document.querySelectorAll('table, pre, dl, img')].map(e => e.getBoundingClientRect().right)"


def test_a_report_fits_a_phone_and_paper(root, browser):
    """What is wider than a phone scrolls in its own box; on A4, within its margins, nothing is wider than the page."""

    def at(width: int, media: str = "screen") -> None:
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": media == "screen"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})

    try:
        at(375)
        browser.get((root / "exps/study/report.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
        at(688, "print")  # 210 mm less twice 14, at 96 dots per inch
        assert max(browser.execute_script(WIDE)) <= 688
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_study_describes_itself_with_a_table_and_its_picture(root, address, browser):
    study = run_named("study")
    page = f"{address}/#/experiments/{study.info.experiment_id}/runs/{study.info.run_id}"
    seen(browser, page, "Study of mlp on digits.", "Not decided: what can be dropped", "Show more")
    browser.find_element("xpath", "//*[text()='Show more']").click()
    shown = "return [...document.querySelectorAll('img[src*=accuracy]')].map(e => e.naturalWidth)"
    end, widths = time.monotonic() + PATIENCE, []
    while not widths or not min(widths):
        assert time.monotonic() < end, "the picture does not load"
        time.sleep(0.2)
        widths = browser.execute_script(shown)
    assert [e.text for e in browser.find_elements("css selector", "th")][:2] == ["chosen by", "kept"]
    assert "Again:" in browser.find_element("tag name", "body").text
