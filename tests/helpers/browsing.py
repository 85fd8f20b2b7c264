"""What tests in a browser share."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page

HOSTILE = (
    "</script><script>document.title='owned'</script>\"><svg onload=alert(1)>'"
    "<img src=x onerror=\"document.title='owned'\">"
)


def opened(browser: Browser, path: Path, *, width: int = 1280, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, drawn, without a network; and what went wrong or was asked for besides the file."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    shown, trouble = context.new_page(), []
    shown.on("console", lambda message: trouble.append(f"console: {message.text}"))
    shown.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    shown.on("request", lambda request: None if request.url == path.as_uri() else trouble.append(request.url))
    shown.goto(path.as_uri())
    shown.locator(".plot:not([data-ready])").first.wait_for(state="detached")
    return shown, trouble
