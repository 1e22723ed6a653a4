//! A headless Chromium, and what a person does with one.

use std::{
    net::TcpStream,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value as Json, json};
use thirtyfour::{ChromiumLikeCapabilities as _, prelude::*};

/// How long the driver may take to start.
const START_MAX: Duration = Duration::from_mins(1);
/// How long a page may take to show what it should.
const WITHIN: Duration = Duration::from_secs(30);
/// How long a page may take to be read.
const READ_MAX: Duration = Duration::from_secs(10);

/// What `make test-console` has found or installed.
pub(crate) struct Tools {
    chromedriver: String,
    chromium: String,
    pub(crate) axe: Option<PathBuf>,
    pub(crate) screenshots: Option<PathBuf>,
}

impl Tools {
    pub(crate) fn find() -> Option<Self> {
        let set = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Some(Self {
            chromedriver: set("CHROMEDRIVER")?,
            chromium: set("CHROMIUM").expect("CHROMIUM names the program: make test-console sets it"),
            axe: set("AXE").map(PathBuf::from),
            screenshots: set("SCREENSHOTS").map(PathBuf::from),
        })
    }

    pub(crate) async fn driver(&self) -> Driver {
        let port = testbed::stack::free_port().unwrap();
        let child = Command::new(&self.chromedriver)
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (mut driver, begun) = (Driver { child, port }, Instant::now());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(driver.child.try_wait().unwrap().is_none(), "{} ended", self.chromedriver);
            assert!(begun.elapsed() < START_MAX, "{} does not listen on {port}", self.chromedriver);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        driver
    }
}

/// The program that drives browsers. Its browsers end with it.
pub(crate) struct Driver {
    child: Child,
    port: u16,
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

impl Driver {
    pub(crate) async fn browser(&self, tools: &Tools, scripts: bool) -> Browser {
        let mut wanted = DesiredCapabilities::chrome();
        wanted.set_binary(&tools.chromium).unwrap();
        for argument in [
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,900",
            "--force-color-profile=srgb",
        ] {
            wanted.add_arg(argument).unwrap();
        }
        // Chromium's sandbox refuses to run for root; what is looked at here is our own.
        if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
            wanted.add_arg("--no-sandbox").unwrap();
        }
        if !scripts {
            let preferences = json!({"profile.managed_default_content_settings.javascript": 2});
            wanted.add_experimental_option("prefs", preferences).unwrap();
        }
        let driver = WebDriver::new(format!("http://127.0.0.1:{}", self.port), wanted).await.unwrap();
        Browser { driver }
    }
}

pub(crate) struct Browser {
    pub(crate) driver: WebDriver,
}

impl Browser {
    pub(crate) async fn quit(self) {
        self.driver.quit().await.unwrap();
    }

    pub(crate) async fn open(&self, url: &str) {
        self.driver.goto(url).await.unwrap();
    }

    // ---------------------------------------------------------------------------------------------------------- seen

    async fn find(&self, css: &str) -> WebElement {
        match self.found(By::Css(css)).await {
            Ok(element) => element,
            Err(error) => {
                panic!(
                    "no {css} on {}: {error}\n{}",
                    self.url().await,
                    self.driver.source().await.unwrap_or_default()
                )
            }
        }
    }

    /// What is there, or comes while a page is still being read.
    async fn found(&self, by: By) -> WebDriverResult<WebElement> {
        let until = Instant::now() + READ_MAX;
        loop {
            match self.driver.find(by.clone()).await {
                Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(50)).await,
                found => return found,
            }
        }
    }

    async fn url(&self) -> String {
        self.driver.current_url().await.map(|url| url.to_string()).unwrap_or_default()
    }

    pub(crate) async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.unwrap()
    }

    pub(crate) async fn value(&self, css: &str) -> String {
        self.find(css).await.prop("value").await.unwrap().unwrap_or_default()
    }

    pub(crate) async fn heading(&self) -> String {
        self.text("h1").await
    }

    pub(crate) async fn all(&self, css: &str) -> Vec<String> {
        let mut texts = Vec::new();
        for element in self.driver.find_all(By::Css(css)).await.unwrap() {
            texts.push(element.text().await.unwrap());
        }
        texts
    }

    pub(crate) async fn script(&self, script: &str) -> Json {
        self.driver.execute(script, Vec::new()).await.unwrap().json().clone()
    }

    /// Opens the page again until the element's text is as it should be.
    pub(crate) async fn until(&self, url: &str, css: &str, fits: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + WITHIN;
        loop {
            self.open(url).await;
            let text = self.text(css).await;
            if fits(&text) {
                return text;
            }
            assert!(Instant::now() < until, "{url}: {css} is still\n{text}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits, and does nothing, until the element has this in it.
    pub(crate) async fn appears(&self, css: &str, wanted: &str) -> bool {
        let until = Instant::now() + WITHIN;
        while Instant::now() < until {
            // The page may go while it is looked at.
            if let Ok(element) = self.driver.find(By::Css(css)).await
                && element.text().await.is_ok_and(|text| text.contains(wanted))
            {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    /// The outcome of an action, once it is not open any more.
    pub(crate) async fn settled_verdict(&self) -> String {
        let url = self.url().await;
        self.until(&url, "#verdict", |text| !text.contains("not done yet")).await
    }

    // ---------------------------------------------------------------------------------------------------------- done

    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    pub(crate) async fn sign_in(&self, token: &str) {
        self.fill("#token", token).await;
        self.press_button("Sign in").await;
    }

    pub(crate) async fn press_button(&self, name: &str) {
        let path = format!("//button[normalize-space()='{name}']");
        self.click(By::XPath(path), name).await;
    }

    /// A link by the whole of its name, as a screen reader reads it.
    pub(crate) async fn follow(&self, name: &str) {
        self.click(By::XPath(format!("//a[normalize-space()='{name}']")), name).await;
    }

    pub(crate) async fn follow_starting(&self, name: &str) {
        self.click(By::XPath(format!("//a[starts-with(normalize-space(), '{name}')]")), name).await;
    }

    /// The page as it is now: it is stale as soon as another one has come.
    async fn page_now(&self) -> WebElement {
        self.find("html").await
    }

    async fn gone(&self, page: WebElement, what: &str) {
        let until = Instant::now() + READ_MAX;
        while page.tag_name().await.is_ok() {
            assert!(Instant::now() < until, "{what} leads nowhere from {}", self.url().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Presses a button that does nothing yet, as the browser asks for something first.
    pub(crate) async fn press_in_vain(&self, name: &str) {
        let path = format!("//button[normalize-space()='{name}']");
        self.found(By::XPath(path)).await.unwrap().click().await.unwrap();
    }

    async fn click(&self, by: By, name: &str) {
        let page = self.page_now().await;
        match self.found(by).await {
            Ok(element) => {
                element.scroll_into_view().await.ok();
                element.click().await.unwrap();
                self.gone(page, name).await;
            }
            Err(error) => panic!("no {name:?} on {}: {error}\n{}", self.url().await, self.text("body").await),
        }
    }

    /// A decision by its value.
    pub(crate) async fn choose(&self, value: &str) {
        self.find(&format!("input[type=radio][value={value}]")).await.click().await.unwrap();
    }

    // ------------------------------------------------------------------------------------------------------ keyboard

    async fn press(&self, key: Key) {
        self.driver.action_chain().send_keys(key).perform().await.unwrap();
    }

    pub(crate) async fn press_tab(&self) {
        self.press(Key::Tab).await;
    }

    /// Enter, where it leads to another page.
    pub(crate) async fn press_enter(&self) {
        let page = self.page_now().await;
        self.press(Key::Enter).await;
        self.gone(page, "Enter").await;
    }

    pub(crate) async fn press_space(&self) {
        self.press(Key::Space).await;
    }

    pub(crate) async fn type_keys(&self, text: &str) {
        self.driver.action_chain().send_keys(text).perform().await.unwrap();
    }

    /// The name of what has the focus: its label, or its text. It has to be seen that it has it.
    pub(crate) async fn focused(&self) -> String {
        let looked = self
            .script(
                "const e = document.activeElement, label = e.labels && e.labels[0];
                 const outline = getComputedStyle(e), box = e.getBoundingClientRect();
                 return [(label || e).textContent.replace(/\\s+/g, ' ').trim(), outline.outlineStyle, parseFloat(outline.outlineWidth),
                         box.width > 0 && box.right > 0 && box.bottom > 0]",
            )
            .await;
        let name = looked[0].as_str().unwrap().to_owned();
        assert!(
            looked[1] == "solid" && looked[2].as_f64().unwrap() >= 2.0,
            "no outline on {name:?}: {looked}"
        );
        assert_eq!(looked[3], true, "{name:?} has the focus and cannot be seen");
        name
    }

    /// Presses the tabulator until what begins with this name has the focus.
    pub(crate) async fn tab_to(&self, name: &str) {
        let mut passed = Vec::new();
        for _ in 0..60 {
            self.press_tab().await;
            let focused = self.focused().await;
            if focused.starts_with(name) {
                return;
            }
            passed.push(focused);
        }
        panic!("{name:?} is not reached: {passed:?}");
    }

    // ---------------------------------------------------------------------------------------------------------- shape

    pub(crate) async fn size(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.driver.cdp().send_raw("Emulation.setDeviceMetricsOverride", size).await.unwrap();
    }

    /// What is in the window, as WebP.
    pub(crate) async fn picture(&self) -> Vec<u8> {
        let wanted = json!({"format": "webp", "quality": 60});
        let taken = self.driver.cdp().send_raw("Page.captureScreenshot", wanted).await.unwrap();
        STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()
    }

    pub(crate) async fn dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.driver.cdp().send_raw("Emulation.setEmulatedMedia", features).await.unwrap();
    }
}
