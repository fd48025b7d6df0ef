//! Medians, and quantiles of latencies.

/// The median of some figures; 0 of none.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

/// A quantile (0 to 1) of latencies in microseconds, in milliseconds; sorts them.
pub(crate) fn quantile_ms(micros: &mut [u32], quantile: f64) -> f64 {
    if micros.is_empty() {
        return 0.0;
    }
    micros.sort_unstable();
    let at = ((micros.len() - 1) as f64 * quantile).round() as usize;
    f64::from(micros[at]) / 1_000.0
}

/// `median (lowest to highest)` of some figures.
pub(crate) fn spread(figures: &[f64]) -> String {
    let low = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figures.iter().copied().fold(0.0, f64::max);
    format!("{:>9.0} ({low:.0} to {high:.0})", median(figures))
}

/// `median (lowest to highest)` of what each round's first figure is of its second. Both were taken one right after the
/// other, so that what else the machine does weighs on both.
pub(crate) fn ratio(ours: &[f64], reference: &[f64]) -> String {
    let ratios: Vec<f64> = ours.iter().zip(reference).map(|(a, b)| a / b).collect();
    let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ratios.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({low:.2} to {high:.2})", median(&ratios))
}
