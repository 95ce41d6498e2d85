"""`llamafactory-cli webui` as users start it, and a headless Chromium that works on its page."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

PATIENCE = 120  # seconds to wait for anything but the start of a process, on a busy machine
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1400,2600",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # the page asks for fonts from elsewhere
)


def until(found: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
    """What `found` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if result := found():
                return result
        except StaleElementReferenceException:  # the page was drawn anew meanwhile
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen in {seconds} s")
        time.sleep(0.3)


@contextmanager
def serve(folder: Path, **environment: str) -> Iterator[str]:
    """The host's web UI, started in an empty folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bin_folder = str(Path(sys.executable).parent)
    settings = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "BROWSER": "true",  # the host wants to open one
    }
    address = f"http://127.0.0.1:{port}/"
    with (folder / "webui.log").open("w") as log:
        server = subprocess.Popen(
            [f"{bin_folder}/llamafactory-cli", "webui"],
            env=os.environ | settings | environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            until(lambda: server.poll() is not None or _answers(address), "the start of the web UI", seconds=300)
            if server.poll() is not None:
                raise RuntimeError(f"the web UI ended:\n{(folder / 'webui.log').read_text()[-3000:]}")
            yield address
        finally:
            server.terminate()
            server.wait(30)


def _answers(address: str) -> bool:
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=10).status == 200
    except (urllib.error.URLError, OSError):
        return False


def find_program(*names: str) -> str:
    """The first of these programs that is installed."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise FileNotFoundError(f"none of {', '.join(names)} is installed; run scripts/make_browser.sh")
    return found


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = find_program("chromium", "chromium-browser", "google-chrome")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    service = webdriver.ChromeService(executable_path=find_program("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Page(driver)
    finally:
        driver.quit()


class Page:
    """The host's page. Elements are found by what users see: their English labels."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        """Load the page and wait until it speaks English."""
        self.driver.get(address)
        self.visible("//button[normalize-space()='Preview command']")

    def visible(self, xpath: str, *, seconds: float = PATIENCE) -> WebElement:
        """The first visible element of that path."""

        def search() -> WebElement | None:
            return next((e for e in self.driver.find_elements(By.XPATH, xpath) if e.is_displayed()), None)

        return until(search, f"visible {xpath}", seconds=seconds)

    def click(self, button: str) -> None:
        """Click a button, or the heading of an accordion."""
        element = self.visible(f"//button[normalize-space()='{button}' or span[normalize-space()='{button}']]")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", element)

    def field(self, label: str) -> WebElement:
        """A text, number or drop-down field."""
        labelled = f"@aria-label='{label}' or @aria-label='number input for {label}'"
        return self.visible(
            f"//*[(self::input and ({labelled})) or ((self::input or self::textarea)"
            f" and ancestor::label//span[normalize-space()='{label}'])]"
        )

    def fill(self, label: str, text: str) -> None:
        """Replace the content of a text or number field."""
        field = self.field(label)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)
        self._leave(field)

    def offered(self, label: str) -> list[str]:
        """What a drop-down offers once it is open; it stays open."""
        field = self.field(label)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", field)
        field.click()
        return self._options()

    def _leave(self, field: WebElement) -> None:
        """Take the focus away; the Tab key would open the next drop-down."""
        self.driver.execute_script("arguments[0].blur()", field)

    def _options(self) -> list[str]:
        script = "return [...document.querySelectorAll('ul[role=listbox] li')].map(li => li.ariaLabel)"
        return self.driver.execute_script(script)

    def choose(self, label: str, choice: str) -> None:
        """Pick from a drop-down."""
        self.offered(label)
        until(lambda: choice in self._options(), f"{choice!r} offered under {label!r}")
        field = self.field(label)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(choice)
        until(lambda: self._options()[:1] == [choice], f"{choice!r} found by typing")
        field.send_keys(Keys.ENTER)
        self._leave(field)
        until(lambda: not self._options(), "the list to close")

    def shows(self, text: str, *, seconds: float = PATIENCE) -> str:
        """Wait until the page shows a text; all of its visible text."""
        body = self.driver.find_element(By.TAG_NAME, "body")
        return until(lambda: body.text if text in body.text else "", f"{text!r} on the page", seconds=seconds)

    def lacks(self, text: str) -> None:
        """Wait until the page shows a text no longer, such as the host's notice of an earlier run."""
        body = self.driver.find_element(By.TAG_NAME, "body")
        until(lambda: text not in body.text, f"a page without {text!r}")

    @contextmanager
    def inside(self, xpath: str) -> Iterator[None]:
        """Look at the page in a frame of the page."""
        frame = self.visible(xpath)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
        self.driver.switch_to.frame(frame)
        try:
            yield
        finally:
            self.driver.switch_to.default_content()

    @contextmanager
    def new_tab(self, address: str) -> Iterator[None]:
        """Work on the page in another browser tab, loaded anew; it is closed in the end."""
        first = self.driver.current_window_handle
        self.driver.switch_to.new_window("tab")
        try:
            self.open(address)
            yield
        finally:
            self.driver.close()
            self.driver.switch_to.window(first)

    def sources(self, xpath: str) -> list[str]:
        """Where the images of that path come from."""
        return [image.get_attribute("src") for image in self.driver.find_elements(By.XPATH, xpath)]

    def picture(self, file: Path) -> None:
        """Keep what the browser shows."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(file))
