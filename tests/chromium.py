"""A browser without a window, on standard input and output: python chromium.py FOLDER

Each line is {"open": address} or {"run": script}; each answer is {"value": …, "errors": [what the console said]}.
Downloads go into FOLDER.
"""

import json
import os
import sys

os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"  # our own pages alone

from PyQt6.QtCore import QEventLoop, QTimer, QUrl
from PyQt6.QtWebEngineCore import QWebEnginePage, QWebEngineProfile
from PyQt6.QtWidgets import QApplication

ERROR = QWebEnginePage.JavaScriptConsoleMessageLevel.ErrorMessageLevel


class Page(QWebEnginePage):
    def __init__(self, profile):
        super().__init__(profile)
        self.errors = []

    def javaScriptConsoleMessage(self, level, message, line, source):
        if level == ERROR:
            self.errors.append(message)


def main() -> None:
    app = QApplication(sys.argv[:1])
    profile = QWebEngineProfile()  # of this process alone

    def save(download):
        download.setDownloadDirectory(sys.argv[1])
        download.accept()

    profile.downloadRequested.connect(save)
    page = Page(profile)
    for line in sys.stdin:
        asked, loop, found = json.loads(line), QEventLoop(), []

        def done(value, found=found, loop=loop):
            found.append(value)
            loop.quit()

        QTimer.singleShot(30_000, loop.quit)  # then there is nothing to answer, and this process ends
        if "open" in asked:
            page.loadFinished.connect(done)
            page.load(QUrl(asked["open"]))
            loop.exec()
            page.loadFinished.disconnect(done)
        else:
            page.runJavaScript(asked["run"], done)
            loop.exec()
        print(json.dumps({"value": found[0], "errors": page.errors}), flush=True)
    del page
    app.quit()


if __name__ == "__main__":
    main()
