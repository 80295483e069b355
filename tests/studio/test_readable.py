"""Pages are readable: contrasts of WCAG AA in both themes, narrow and enlarged windows, names for all that is pressed."""

import pytest

pytestmark = pytest.mark.slow  # a browser, and a server of its own

# Texts whose contrast with what is behind them is below 4.5 (3 where they are large), as `text: contrast`.
FAINT = """() => {
  const parse = text => {
    const numbers = text.match(/[\\d.]+/g).map(Number);
    if (text.startsWith('color(')) return [...numbers.slice(0, 3).map(v => 255 * v), numbers[3] ?? 1];
    return [numbers[0], numbers[1], numbers[2], numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * below[i]);
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const box = node?.getBoundingClientRect();
    const style = node && getComputedStyle(node);
    if (!walker.currentNode.data.trim() || !box.width || !box.height || style.visibility === 'hidden') continue;
    if (node.closest('[disabled], [aria-disabled=true], option, noscript, .hidden, .skip')) continue;
    const back = behind(node);
    const [a, b] = [light(over(parse(style.color), back)), light(back)].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (contrast < (large ? 3 : 4.5)) found.push(`${walker.currentNode.data.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""

NAMELESS = """() => [...document.querySelectorAll('button, a, input, select')]
  .filter(node => !(node.textContent.trim() || node.getAttribute('aria-label') || node.title || node.labels?.length))
  .map(node => node.outerHTML.slice(0, 120))"""


def visit(pages):
    """Each kind of page in turn, with its name."""
    page = pages.corpus("?f=task.source=s1&cut=0.26,0.27")
    yield "corpus", page
    page.locator(".table .grid-row").first.click()
    page.locator(".turn").first.wait_for()
    page.locator(".neighbours tbody tr").first.wait_for()
    yield "trajectory", page
    page.get_by_role("button", name="As the model reads it").click()
    page.locator(".token-text span.own").first.wait_for()
    yield "tokens", page
    page = pages.open()
    page.locator(".folders tbody a").first.wait_for()
    yield "folders", page
    links = {name: page.locator(".folders .pages a", has_text=name).first.get_attribute("href") for name in ("corpus", "run")}
    corpus = links["corpus"].rpartition("/")[2]
    page = pages.open(f"#/compare?a={corpus}&ma=gini&mb=cv")
    page.locator(".numbers strong").first.wait_for()
    yield "compare", page
    page = pages.open(links["run"])
    page.locator(".multiple canvas").first.wait_for()
    yield "run", page
    page.get_by_role("link", name="episodes").click()
    page.locator(".grid-row").first.click()
    page.locator(".step").first.wait_for()
    yield "episode", page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_the_contrast_of_aa(shown, pages_of, theme):
    found = {name: page.evaluate(FAINT) for name, page in visit(pages_of(shown, color_scheme=theme))}
    assert len(found) == 7 and not any(found.values()), found


def test_the_check_of_contrasts_finds_what_is_faint(shown, pages_of):
    page = pages_of(shown).open()
    page.locator(".folders").wait_for()
    page.evaluate("document.querySelector('h1').style.color = '#aaa'")
    assert page.evaluate(FAINT) and not page.evaluate(NAMELESS)


@pytest.mark.parametrize("width", [360, 640])  # a telephone's, and 1280 at 200 %
def test_a_narrow_page_is_not_scrolled_sideways(shown, pages_of, width):
    for name, page in visit(pages_of(shown, viewport={"width": width, "height": 800})):
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name}: {wide} pixels"


def test_all_that_is_pressed_has_a_name(pages):
    found = {name: page.evaluate(NAMELESS) for name, page in visit(pages)}
    assert len(found) == 7 and not any(found.values()), found


def test_the_theme_is_chosen_and_kept(shown, pages_of):
    found = pages_of(shown, color_scheme="light")
    page = found.open()
    page.locator(".folders").wait_for()
    scheme = "getComputedStyle(document.documentElement).colorScheme"
    for _ in range(2):  # from the system's to light, and on to dark
        page.get_by_role("button", name="Theme").click()
    assert page.evaluate(scheme) == "dark"
    page.reload()
    page.locator(".folders").wait_for()
    assert page.evaluate(scheme) == "dark"
