//! A mount table of 50,000 lines: aimed at under 25 ms. The baseline looks at every byte and builds nothing.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use csi_driver::host::mountinfo;

fn table() -> Vec<u8> {
    let mut table = String::new();
    for i in 0..50_000 {
        let pod = format!("{i:08x}-0000-4000-8000-000000000000");
        let _ = writeln!(
            table,
            "{} 30 7:{} / /var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~csi/pvc-{pod}/mount{} rw,relatime \
             shared:{} - ext4 /dev/loop{} rw,stripe=4",
            i + 100,
            i % 256,
            if i % 10 == 0 { "\\040x" } else { "" },
            i,
            i % 256
        );
    }
    table.into_bytes()
}

fn bench(c: &mut Criterion) {
    let table = table();
    let mut group = c.benchmark_group("mountinfo, 50000 lines");
    group.sample_size(20);
    group.bench_function("baseline: fields counted", |b| {
        let fields = |line: &[u8]| line.split(|byte| *byte == b' ').count();
        b.iter(|| black_box(&table).split(|byte| *byte == b'\n').map(fields).sum::<usize>());
    });
    group.bench_function("parse", |b| b.iter(|| mountinfo::parse(black_box(&table)).map(|m| m.len())));
    group.bench_function("select one target", |b| {
        let wanted = Path::new("/var/lib/kubelet/pods/none");
        b.iter(|| mountinfo::select(black_box(&table), |m| m.target == wanted).map(|m| m.len()));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
