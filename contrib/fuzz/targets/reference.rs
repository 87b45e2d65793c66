//! Whatever is typed for an image: no panic, and what is accepted survives Display and FromStr.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rsmount::oci::{ImageName, Reference};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name));
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(
            reference.to_string().parse::<Reference>().as_ref(),
            Ok(&reference)
        );
        assert_eq!(
            reference.familiar().parse::<Reference>().as_ref(),
            Ok(&reference)
        );
    }
});
