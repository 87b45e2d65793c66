//! Manifests and indexes as a registry may send them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::oci::{Manifest, Platform};

fuzz_target!(|bytes: &[u8]| {
    match Manifest::parse(bytes, None) {
        Ok(Manifest::Image(image)) => {
            let _ = image.layers_size();
            let _ = image.check_is_image();
        }
        Ok(Manifest::Index(index)) => {
            let _ = index.select(&"linux/arm/v7".parse::<Platform>().expect("a platform"));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
});
