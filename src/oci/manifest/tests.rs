//! Manifests: what is read, what is refused, and with which words.

use serde_json::{Value, json};

use super::*;
use crate::oci::Digest;

const OCI_IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_IMAGE: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn blob(size: i64) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": Digest::of(b"x").to_string(),
        "size": size,
        "annotations": null,
    })
}

fn image_of(layers: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "config": blob(2), "layers": layers})
}

fn parse(value: &Value, hint: Option<&str>) -> Result<Manifest, ManifestError> {
    Manifest::parse(value.to_string().as_bytes(), hint)
}

fn index_of(platforms: &[(&str, &str)]) -> Value {
    let manifests: Vec<Value> = platforms
        .iter()
        .map(|(os, arch)| {
            let mut d = blob(7);
            d["platform"] = json!({"os": os, "architecture": arch, "variant": ""});
            d
        })
        .collect();
    json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests})
}

#[test]
fn both_dialects_are_read() {
    for own in [None, Some(OCI_IMAGE), Some(DOCKER_IMAGE)] {
        for hint in [
            None,
            Some(OCI_IMAGE),
            Some("application/json; charset=utf-8"),
        ] {
            let mut document = image_of(vec![blob(1), blob(3)]);
            if let Some(own) = own {
                document["mediaType"] = own.into();
            }
            let Ok(Manifest::Image(image)) = parse(&document, hint) else {
                panic!()
            };
            assert_eq!((image.layers.len(), image.layers_size()), (2, 4));
            image.check_is_image().unwrap();
        }
    }
    let Ok(Manifest::Index(index)) = parse(&index_of(&[("linux", "amd64")]), Some(DOCKER_LIST))
    else {
        panic!()
    };
    assert_eq!(index.manifests[0].platform.as_ref().unwrap().variant, None);
}

#[test]
fn ambiguous_documents_are_refused() {
    let mut both = image_of(vec![]);
    both["manifests"] = json!([]);
    assert!(matches!(
        parse(&both, None),
        Err(ManifestError::Ambiguous(_))
    ));
    assert!(matches!(
        parse(&image_of(vec![]), Some(OCI_INDEX)),
        Err(ManifestError::Ambiguous(_))
    ));
    let mut liar = image_of(vec![]);
    liar["mediaType"] = OCI_INDEX.into();
    assert!(matches!(
        parse(&liar, None),
        Err(ManifestError::Ambiguous(_))
    ));
}

#[test]
fn what_is_no_manifest_is_refused() {
    let schema1 = json!({"schemaVersion": 1, "fsLayers": []});
    assert!(matches!(parse(&schema1, None), Err(ManifestError::Schema1)));
    let jws = Some("application/vnd.docker.distribution.manifest.v1+prettyjws");
    assert!(matches!(
        parse(&json!({}), jws),
        Err(ManifestError::Schema1)
    ));
    assert!(matches!(
        parse(&json!({"errors": []}), None),
        Err(ManifestError::Kind(_))
    ));
    let moving = json!({"mediaType": "a\n\u{1b}[2J"});
    assert_eq!(
        parse(&moving, None).unwrap_err().to_string(),
        "`a\u{fffd}\u{fffd}[2J` is neither an image manifest nor an image index"
    );
    assert!(matches!(
        Manifest::parse(b"<html>", None),
        Err(ManifestError::Json(_))
    ));
    let no_config = json!({"layers": []});
    assert!(matches!(
        parse(&no_config, None),
        Err(ManifestError::Json(_))
    ));
    let mut md5 = image_of(vec![blob(1)]);
    md5["layers"][0]["digest"] = "md5:00".into();
    let message = parse(&md5, None).unwrap_err().to_string();
    assert!(message.contains("`md5` is not supported"), "{message}");
}

#[test]
fn numbers_are_checked() {
    let error = parse(&image_of(vec![blob(-1)]), None);
    assert!(matches!(error, Err(ManifestError::Size { size: -1, .. })));
    let mut huge = image_of(vec![blob(1)]);
    huge["layers"][0]["size"] = json!(u64::MAX);
    assert!(matches!(parse(&huge, None), Err(ManifestError::Json(_))));
    let overflow = image_of(vec![blob(i64::MAX), blob(1)]);
    assert!(matches!(
        parse(&overflow, None),
        Err(ManifestError::TotalSize)
    ));
    assert!(parse(&image_of(vec![blob(1); LAYERS_MAX]), None).is_ok());
    let many = image_of(vec![blob(1); LAYERS_MAX + 1]);
    assert!(matches!(
        parse(&many, None),
        Err(ManifestError::Layers(501))
    ));
    let long = vec![b' '; MANIFEST_BYTES_MAX as usize + 1];
    assert!(matches!(
        Manifest::parse(&long, None),
        Err(ManifestError::TooLong(_))
    ));
}

#[test]
fn artifacts_are_told_from_images() {
    let mut chart = image_of(vec![blob(1)]);
    chart["layers"][0]["mediaType"] = "application/vnd.cncf.helm.chart.content.v1.tar+gzip".into();
    let Ok(Manifest::Image(chart)) = parse(&chart, None) else {
        panic!()
    };
    let message = chart.check_is_image().unwrap_err().to_string();
    assert!(
        message.contains("layer 1") && message.contains("helm"),
        "{message}"
    );
}

#[test]
fn a_missing_platform_is_answered_with_what_there_is() {
    let document = index_of(&[
        ("linux", "amd64"),
        ("linux", "s390x"),
        ("unknown", "unknown"),
    ]);
    let Ok(Manifest::Index(index)) = parse(&document, None) else {
        panic!()
    };
    assert!(index.select(&Platform::new("linux", "amd64", None)).is_ok());
    let message = index
        .select(&Platform::new("linux", "riscv64", None))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("it has linux/amd64, linux/s390x (choose"),
        "{message}"
    );
}
