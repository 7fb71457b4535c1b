"""Headless Chromium for tests of the report; skipped, with the reason, where there is none."""

import json
import shutil
from pathlib import Path

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
READY = "return document.documentElement.dataset.ready === 'yes'"
SETTLE = "const done = arguments[1]; report.set(arguments[0]); report.idle().then(done);"
SECONDS = 60


def start_browser(profile, scripts=True):
    """A Chromium with a fresh profile in this folder; quit() ends it."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1280,1000"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if not scripts:
        blocked = {"profile.managed_default_content_settings.javascript": 2}
        options.add_experimental_option("prefs", blocked)
    assert selenium
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.set_script_timeout(SECONDS)
    return browser


def open_page(browser, path):
    """Load a report and wait until all its sections are drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(Path(path).as_uri())
    WebDriverWait(browser, SECONDS).until(lambda b: b.execute_script(READY))


def wait_for(browser, condition):
    """What `condition` gives once it is true of the page."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, SECONDS, poll_frequency=0.05).until(lambda b: condition())


def requests_of(browser):
    """What the page asked for, other than itself."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in sent if not url.startswith(("file:", "data:", "blob:", "chrome"))]


def settle(browser, state=None):
    """Change the page's state, if any, and wait until all sections show it."""
    browser.execute_async_script(SETTLE, state or {})
