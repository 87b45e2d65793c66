//! Debian's docker-registry, started for one test.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running registry; it ends with this value.
pub struct DockerRegistry {
    child: Child,
    port: u16,
}

impl DockerRegistry {
    /// Serves `dir`; `None`, loudly, when it is not installed.
    pub fn serve(dir: &Path, read_only: bool) -> Option<DockerRegistry> {
        if Command::new("docker-registry")
            .arg("--version")
            .output()
            .is_err()
        {
            super::place::skip("needs docker-registry");
            return None;
        }
        std::fs::create_dir_all(dir).unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
             maintenance:\n    readonly:\n      enabled: {read_only}\nhttp:\n  addr: 127.0.0.1:0\n",
            dir.join("data").display()
        );
        let path = dir.join(format!("config-{read_only}.yml"));
        std::fs::write(&path, config).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve", path.to_str().unwrap()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        let port = loop {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not say its port"
            );
            let mut line = String::new();
            assert!(
                log.read_line(&mut line).unwrap() > 0,
                "docker-registry ended"
            );
            let said = line.split("listening on 127.0.0.1:").nth(1);
            if let Some(port) = said.and_then(|s| s[..s.find('"')?].trim().parse().ok()) {
                break port;
            }
        };
        // Somebody has to read what it goes on saying.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(DockerRegistry { child, port })
    }

    pub fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
