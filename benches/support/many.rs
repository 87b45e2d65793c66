//! An image with as many files as wanted: long paths, hard links, many directories.

use std::path::Path;

use crate::layout::{self, DIR, FILE, Layer, Pack};

/// Files of one directory.
const FAN: usize = 50;

/// Writes a layout with about `files` files to `dir`, the same bytes each time.
pub(crate) fn write(dir: &Path, files: usize) {
    let mut layer = Layer::new();
    let mut at = String::new();
    for n in 0..files {
        if n % FAN == 0 {
            let (top, middle) = (n / (FAN * FAN), n / FAN);
            at = format!("opt/package-{top:05}/lib/python3.11/site-packages/module-{middle:06}");
            layer = layer.dir(&at, DIR);
        }
        let path = format!("{at}/a_file_with_a_name_of_usual_length_{n:07}.py");
        layer = match n % 20 {
            7 => layer.hard_link(&path, &format!("{at}/link-target")),
            8 => layer.symlink(&path, "../../../../bin/python3.11"),
            0 => layer.file(&format!("{at}/link-target"), FILE, b"shared\n"),
            _ => layer.file(&path, FILE, path.as_bytes()),
        };
    }
    layout::write(dir, &[layer.tar()], Pack::Gzip);
}
