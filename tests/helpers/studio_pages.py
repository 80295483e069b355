"""Pages of the studio in a browser, and the server that they come from."""

import re
import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def served(*folders, options=()):
    """The address at which `gradprism studio` answers for folders."""
    command = [sys.executable, "-m", "gradprism", "studio", *map(str, folders), "--no-browser", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def settle(page):
    """Waits until what was changed is drawn."""
    page.evaluate(
        "new Promise(done => requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(() => setTimeout(done)))))"
    )


def counts(page):
    """Trajectories by side, as the page says."""
    settle(page)
    rows = page.locator(".sides tbody tr").all()
    return {row.get_attribute("data-side"): int(row.locator("td.n").inner_text()) for row in rows}


def parameter(page, name):
    """What the address says of a parameter, once it follows the page; None where it says nothing.

    The page changes its address 250 ms after what was done. A longer timer of the page itself fires after that one, however slow the
    machine is.
    """
    address = page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 300))")
    found = re.search(rf"[?&]{name}=([^&]+)", address)
    return found and found[1]


class Pages:
    """Pages of one browser context; what they say on the console, and which dialogs they open, is kept in `said`."""

    def __init__(self, context, address):
        self.context, self.address, self.said = context, address, []
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda message: message.type == "error" and self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def open(self, link=""):
        """The page at a link such as `#/compare`; the first one comes with the token."""
        self.page.goto(self.address if self.page.url == "about:blank" else "about:blank")
        self.page.goto(f"{self.address.split('?')[0]}{link}")
        return self.page

    def corpus(self, state=""):
        """The page of the tree's corpus, in a state such as `?m=cv`."""
        page = self.open()
        link = page.locator(".folders .pages a", has_text="corpus").first.get_attribute("href")
        page = self.open(f"{link}{state}")
        page.locator(".sides td.n").first.wait_for()
        page.locator(".grid-head", has_text="kurtosis").wait_for()
        return page
