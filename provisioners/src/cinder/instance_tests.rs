use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;

use super::*;

const ID: &str = "7a1d4b0e-3a6c-4b7e-9d6f-0123456789ab";

fn document(zone: &str) -> String {
    format!(r#"{{"uuid": "{ID}", "availability_zone": "{zone}", "name": "worker-1"}}"#)
}

fn config(root: &Path, order: &[MetadataSource], url: &str) -> CinderConfig {
    CinderConfig {
        root: root.to_owned(),
        metadata_order: order.to_vec(),
        metadata_url: url.to_owned(),
        ..CinderConfig::default()
    }
}

/// Answers one request with a text.
fn server(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        (&stream).write_all(answer.as_bytes()).unwrap();
    });
    url
}

/// An ISO 9660 image with `openstack/latest/meta_data.json`, as far as it is read.
fn image(content: &str) -> Vec<u8> {
    let mut image = vec![0; 24 * 2048];
    let record = |name: &[u8], sector: u32, bytes: usize| {
        let mut record = vec![0; 34 + name.len() + name.len() % 2];
        record[0] = u8::try_from(record.len()).unwrap();
        record[2..6].copy_from_slice(&sector.to_le_bytes());
        record[10..14].copy_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
        record[32] = u8::try_from(name.len()).unwrap();
        record[33..33 + name.len()].copy_from_slice(name);
        record
    };
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        image[sector * 2048 + at..sector * 2048 + at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, 0, b"\x01CD001");
    put(16, 40, b"config-2                        ");
    put(16, 156, &record(b"\0", 18, 2048)[..34]);
    put(18, 0, &record(b"openstack", 19, 2048));
    put(19, 0, &record(b"latest", 20, 4096));
    // The wanted record is in the directory's second sector.
    put(20, 0, &record(b"other;1", 23, 1));
    put(21, 0, &record(b"meta_data.json;1", 22, content.len()));
    put(22, 0, content.as_bytes());
    image
}

#[test]
fn the_config_drive_is_read_by_its_label() {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in [("vda", vec![0; 1 << 20]), ("vdb", image(&document("east")))] {
        fs::create_dir_all(root.path().join("sys/block").join(name)).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("sys/block").join(name).join("size"), format!("{}\n", bytes.len() / 512))
            .unwrap();
        fs::write(root.path().join("dev").join(name), bytes).unwrap();
    }
    let found = Instance::find(&config(root.path(), &[MetadataSource::ConfigDrive], "")).unwrap();
    assert_eq!(found, Instance { id: ID.into(), zone: Some("east".into()) });
}

#[test]
fn damaged_drives_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let whole = image(&document("east"));
    for cut in [0, 100, 16 * 2048, 17 * 2048, 20 * 2048, 22 * 2048] {
        let path = root.path().join("drive");
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(super::super::iso::read(&path, DOCUMENT).is_err(), "{cut}");
    }
}

#[test]
fn o8_a_source_that_fails_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let text = document("west");
    let url = server(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
    let found = Instance::find(&config(root.path(), &MetadataSource::ALL, &url)).unwrap();
    assert_eq!(found.zone.as_deref(), Some("west"));

    let error = Instance::find(&config(root.path(), &MetadataSource::ALL, "http://127.0.0.1:1")).unwrap_err();
    for words in ["ConfigDrive", "MetadataService", "CloudInit", "Dmi", "instanceId"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(error.label(), "unavailable");
}

#[test]
fn an_answer_that_is_no_metadata_is_no_answer() {
    let root = tempfile::tempdir().unwrap();
    for answer in [
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\n{\"uuid\": \"x\"}",
        "",
        "HTTP/1.1 200 OK\r\n\r\n<html>",
    ] {
        let url = server(answer.to_owned());
        assert!(
            Instance::find(&config(root.path(), &[MetadataSource::MetadataService], &url)).is_err(),
            "{answer}"
        );
    }
}

#[test]
fn cloud_init_and_the_firmware_know_the_id() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("var/lib/cloud/data/instance-id", &format!("{ID}\n"));
    write("run/cloud-init/instance-data.json", r#"{"v1": {"availability_zone": "nova"}}"#);
    let found = Instance::find(&config(root.path(), &[MetadataSource::CloudInit], "")).unwrap();
    assert_eq!(found, Instance { id: ID.into(), zone: Some("nova".into()) });

    write("sys/class/dmi/id/product_uuid", &ID.to_uppercase());
    write("sys/class/dmi/id/product_name", "OpenStack Nova\n");
    let found = Instance::find(&config(root.path(), &[MetadataSource::Dmi], "")).unwrap();
    assert_eq!(found, Instance { id: ID.into(), zone: None });
    write("sys/class/dmi/id/product_name", "KVM\n");
    assert!(Instance::find(&config(root.path(), &[MetadataSource::Dmi], "")).is_err());
}

#[test]
fn a_configured_instance_is_asked_nobody() {
    let mut config = config(Path::new("/nonexistent"), &[], "");
    config.instance = Some(ID.into());
    config.zone = Some("east".into());
    assert_eq!(Instance::find(&config).unwrap(), Instance { id: ID.into(), zone: Some("east".into()) });
}
