"""Open every built page in Chromium, wide and narrow, light and dark.

Prints what is wrong: a page wider than the window, an error in the console, an image
that is missing, a request to another host, a link to a page or a heading that is not
there. ``--screenshots FOLDER`` keeps pictures of the pages.
"""

import argparse
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

from selenium import webdriver

PAGES = Path(__file__).parent / "_build" / "html"
WIDTHS, THEMES = (1400, 400), ("light", "dark")

READ_PAGE = """
return {
  ids: [...document.querySelectorAll("[id]")].map(e => e.id),
  links: [...document.links].map(a => a.href),
  missing: [...document.images].filter(i => i.complete && !i.naturalWidth)
    .map(i => i.src),
  requests: performance.getEntriesByType("resource").map(r => r.name),
}"""
LOAD_IMAGES = """
const done = arguments[0];
for (const image of document.images) image.loading = "eager";
Promise.allSettled([...document.images].map(i => i.decode())).then(() => done());
"""
# What lies right of the window and is in nothing that scrolls by itself.
WIDEST = """
const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
const isLost = e => {
  if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let p = e.parentElement; p && !p.matches("article"); p = p.parentElement)
    if (scrolls(p)) return false;
  return true;
};
const lost = [...document.querySelectorAll("article *")].find(isLost);
if (lost) return lost.outerHTML.slice(0, 200);
return document.documentElement.scrollWidth > innerWidth ? "the page" : null"""


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, *_args):
        """Print nothing."""


def open_browser() -> webdriver.Chrome:
    """Start Debian's Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(
        options, webdriver.ChromeService(shutil.which("chromedriver"))
    )


def set_width(browser: webdriver.Chrome, width: int, height: int = 900) -> None:
    """Make the page so many pixels wide, less than a window may be."""
    metrics = {
        "width": width,
        "height": height,
        "deviceScaleFactor": 1,
        "mobile": False,
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def check_page(browser, origin, name, theme, screenshots):
    """Return what is wrong with a page in a theme, its links and its ids."""
    browser.get(f"{origin}/{name}")
    browser.execute_async_script(LOAD_IMAGES)
    page = browser.execute_script(READ_PAGE)
    found = [
        f"console: {entry['message']}"
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE"
    ]
    found += [f"missing image: {source}" for source in page["missing"]]
    found += [
        f"request to another host: {url}"
        for url in page["requests"]
        if not url.startswith((origin, "data:"))
    ]
    for width in WIDTHS:
        set_width(browser, width)
        widest = browser.execute_script(WIDEST)
        if widest is not None:
            found.append(f"wider than {width} pixels: {widest}")
        if screenshots is not None:
            height = browser.execute_script(
                "return document.documentElement.scrollHeight"
            )
            set_width(browser, width, min(height, 6000))
            stem = name.removesuffix(".html").replace("/", "_")
            browser.save_screenshot(str(screenshots / f"{stem}_{width}_{theme}.png"))
    return found, page["links"], set(page["ids"])


def dead_links(origin, links, ids):
    """Return the links of each page to pages or headings that are not there."""
    for name, urls in links.items():
        for url in dict.fromkeys(urls):
            address, fragment = urldefrag(url)
            if not address.startswith(origin):
                continue
            target = unquote(address.removeprefix(f"{origin}/")) or "index.html"
            if not (PAGES / target).is_file():
                yield f"{name}: dead link: {url}"
            elif target in ids and fragment and unquote(fragment) not in ids[target]:
                yield f"{name}: no such heading: {url}"


def main() -> None:
    """Check all pages, or those whose names hold a word."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--only", default="", help="part of the names of pages")
    options = parser.parse_args()
    if options.screenshots is not None:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    handler = partial(QuietHandler, directory=str(PAGES))
    server = ThreadingHTTPServer(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://localhost:{server.server_port}"
    names = sorted(
        str(path.relative_to(PAGES))
        for path in PAGES.rglob("*.html")
        if options.only in str(path) and "_static" not in path.parts
    )
    problems, links, ids = [], {}, {}
    browser = open_browser()
    try:
        for theme in THEMES:
            browser.get(f"{origin}/index.html")
            browser.execute_script(
                "localStorage.mode = localStorage.theme = arguments[0]", theme
            )
            # The theme complains once that no mode was chosen yet.
            browser.get_log("browser")
            for name in names:
                found, links[name], ids[name] = check_page(
                    browser, origin, name, theme, options.screenshots
                )
                problems += [f"{name}, {theme}: {problem}" for problem in found]
    finally:
        browser.quit()
        server.shutdown()
    problems += dead_links(origin, links, ids)
    print("\n".join(problems))
    print(f"{len(names)} pages, {len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
