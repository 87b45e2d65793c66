//! Figures of others, to be printed beside ours. They were measured once, on a machine of this kind
//! (2 cores), with the same programs over links of the same speed, for images that were *converted*
//! before: stargz 0.12 to eStargz, nydus 2.4 (FUSE) to RAFS v6. Seconds from command to ready.

/// One image of the table.
pub(crate) struct Published {
    /// `NAME:TAG`.
    pub(crate) image: &'static str,
    /// Mbit/s and milliseconds.
    pub(crate) link: &'static str,
    pub(crate) podman: f64,
    pub(crate) stargz: Option<f64>,
    pub(crate) nydus: Option<f64>,
}

const fn row(
    image: &'static str,
    link: &'static str,
    podman: f64,
    (stargz, nydus): (Option<f64>, Option<f64>),
) -> Published {
    Published {
        image,
        link,
        podman,
        stargz,
        nydus,
    }
}

/// The table.
pub(crate) const PUBLISHED: &[Published] = &[
    row("python:3.11", "1000/5", 4.45, (Some(1.05), Some(0.64))),
    row("python:3.11", "100/20", 11.0, (Some(2.31), Some(3.03))),
    row("redis:7", "1000/5", 3.45, (Some(0.71), Some(0.45))),
    row("redis:7", "100/20", 8.8, (Some(1.61), Some(2.21))),
    row("node:18", "1000/5", 8.47, (Some(2.07), Some(1.00))),
    row("node:18", "100/20", 16.9, (Some(4.64), Some(4.66))),
    row("gcc:12", "1000/5", 5.75, (Some(2.59), Some(1.30))),
    row("gcc:12", "100/20", 15.4, (Some(5.46), Some(5.48))),
    row("postgres:15", "1000/5", 6.54, (Some(2.99), Some(1.68))),
    row("postgres:15", "100/20", 16.9, (Some(6.26), Some(5.93))),
    row("openjdk:17", "1000/5", 5.76, (Some(2.46), None)),
];

impl Published {
    pub(crate) fn of(image: &str, link: &str) -> Option<&'static Published> {
        PUBLISHED
            .iter()
            .find(|p| p.image == image && p.link == link)
    }

    /// The faster of the two.
    pub(crate) fn best(&self) -> Option<f64> {
        let both = [self.stargz, self.nydus];
        both.into_iter().flatten().reduce(f64::min)
    }
}
