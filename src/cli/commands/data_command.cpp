// pelago data: from text to a dataset, and what a dataset holds.
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <stop_token>

#include "base/error.h"
#include "base/text/json.h"
#include "base/threads.h"
#include "cli/commands/commands.h"
#include "cli/interrupts.h"
#include "cli/terminal.h"
#include "data/build.h"
#include "data/inspect.h"

namespace pelago::cli {

namespace {

struct BuildArguments {
  data::BuildOptions options;
  std::vector<std::string> from;
  std::string out;
  double max_mb = 0;
};

nlohmann::json split_json(const data::SplitReport& split) {
  return {{"documents", split.num_documents},
          {"tokens", split.num_tokens},
          {"text_bytes", split.num_text_bytes},
          {"shards", split.num_shards}};
}

void print_report(const data::BuildReport& report, bool as_json) {
  if (as_json) {
    const nlohmann::json json = {{"dataset", report.out.string()},
                                 {"files", report.num_files},
                                 {"unreadable", report.num_unreadable},
                                 {"duplicates", report.num_duplicates},
                                 {"vocab_size", report.vocab_size},
                                 {"tokenizer_hash", report.tokenizer_hash},
                                 {"dataset_hash", report.dataset_hash},
                                 {"train", split_json(report.train)},
                                 {"heldout", split_json(report.heldout)},
                                 {"tokenizer_s", report.tokenizer_s},
                                 {"total_s", report.total_s}};
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  std::printf(
      "%s: vocabulary %ld, %ld files, %ld duplicate documents left out, %ld unreadable; %.1f s, of "
      "which %.1f s for the tokenizer\n",
      report.out.c_str(),
      report.vocab_size,
      report.num_files,
      report.num_duplicates,
      report.num_unreadable,
      report.total_s,
      report.tokenizer_s);
  for (const auto& [name, split] :
       {std::pair{"train", &report.train}, std::pair{"held out", &report.heldout}}) {
    std::printf("  %-8s %8ld documents  %8s tokens  %s of text  %.2f bytes a token\n",
                name,
                split->num_documents,
                short_number(static_cast<double>(split->num_tokens)).c_str(),
                short_bytes(static_cast<double>(split->num_text_bytes)).c_str(),
                static_cast<double>(split->num_text_bytes) /
                    static_cast<double>(std::max<int64_t>(1, split->num_tokens)));
  }
}

void run_build(BuildArguments& arguments, const Globals& globals) {
  data::BuildOptions& options = arguments.options;
  for (const std::string& source : arguments.from) {
    if (source == "-") {
      options.from_stdin = true;
    } else {
      options.from.emplace_back(source);
    }
  }
  options.out = arguments.out;
  if (arguments.max_mb < 0)
    fail_usage("--max-mb {}: must be positive, or 0 for all", arguments.max_mb);
  if (arguments.max_mb > 0) options.text_bytes_max = static_cast<int64_t>(1e6 * arguments.max_mb);
  options.num_threads = static_cast<int>(allowed_cores().size());
  std::stop_source stop;
  Interrupts interrupts([&stop] { stop.request_stop(); });
  LiveLine line(STDERR_FILENO);
  const auto report = data::build_dataset(
      options,
      [&](const data::BuildProgress& progress) {
        if (globals.quiet) return;
        std::string text = fmt::format(
            "{}: {}", progress.phase, short_bytes(static_cast<double>(progress.done_bytes)));
        if (progress.total_bytes > 0)
          text += " of " + short_bytes(static_cast<double>(progress.total_bytes));
        line.draw(text, 5.0);
      },
      stop.get_token());
  interrupts.ignore_from_now();
  line.end();
  print_report(report, globals.json);
}

nlohmann::json to_json(const data::DatasetSummary& summary) {
  nlohmann::json json = {{"dataset_hash", summary.dataset_hash},
                         {"tokenizer_hash", summary.tokenizer_hash},
                         {"vocab_size", summary.vocab_size},
                         {"tokens_used", summary.num_tokens_used},
                         {"hashes_verified", summary.hashes_verified},
                         {"sample", summary.sample}};
  for (const data::SplitSummary& split : summary.splits) {
    json["splits"].push_back({{"name", split.name},
                              {"documents", split.num_documents},
                              {"tokens", split.num_tokens},
                              {"text_bytes", split.num_text_bytes},
                              {"shards", split.num_shards},
                              {"bytes_per_token", split.bytes_per_token}});
  }
  for (const data::TokenCount& token : summary.most_frequent) {
    json["most_frequent"].push_back(
        {{"token", token.token}, {"text", token.text}, {"count", token.count}});
  }
  return json;
}

void print_summary(const std::string& dir, const data::DatasetSummary& summary) {
  std::printf("%s: vocabulary %ld, of which %ld occur; every hash is %s\n",
              dir.c_str(),
              summary.vocab_size,
              summary.num_tokens_used,
              summary.hashes_verified ? "right" : "unchecked");
  for (const data::SplitSummary& split : summary.splits) {
    std::printf("  %-8s %8ld documents  %8s tokens  %s of text  %.2f bytes a token\n",
                split.name.c_str(),
                split.num_documents,
                short_number(static_cast<double>(split.num_tokens)).c_str(),
                short_bytes(static_cast<double>(split.num_text_bytes)).c_str(),
                split.bytes_per_token);
  }
  std::printf("  most frequent:");
  for (const data::TokenCount& token : summary.most_frequent) {
    std::printf(
        " '%s' %s", token.text.c_str(), short_number(static_cast<double>(token.count)).c_str());
  }
  std::printf("\n  begins: %s\n", data::escaped(summary.sample).c_str());
}

void run_inspect(const std::string& dir, const Globals& globals) {
  const data::DatasetSummary summary = data::inspect_dataset(dir);
  if (globals.json) {
    std::printf(
        "%s\n",
        to_json(summary).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    print_summary(dir, summary);
  }
}

}  // namespace

void add_data(CLI::App& app, Globals& globals) {
  CLI::App* group = app.add_subcommand("data", "build a dataset from text, or look at one");
  group->require_subcommand(1);
  group->footer(
      "\nExamples:\n"
      "  pelago data build --from /usr/include --glob '*.h,*.hpp' --out runs/data/headers\n"
      "  pelago data inspect runs/data/headers\n");
  auto arguments = std::make_shared<BuildArguments>();
  data::BuildOptions& options = arguments->options;
  CLI::App* build = add_command(
      *group,
      globals,
      "build",
      "text to tokenizer and token shards",
      "  pelago data build --from /usr/include --glob '*.h,*.hpp' --out runs/data/headers\n"
      "  pelago data build --from books.jsonl --text-field content --vocab-size 16384 --out books\n"
      "  zcat notes.gz | pelago data build --from - --out notes\n");
  build
      ->add_option(
          "--from", arguments->from, "folders, files, .jsonl files, or - for standard input")
      ->required();
  build->add_option("--glob", options.globs, "which file names count inside folders")
      ->delimiter(',');
  build->add_option("--out", arguments->out, "the folder to make")->required();
  build->add_option("--vocab-size", options.vocab_size, "tokens of the vocabulary at most")
      ->capture_default_str();
  build->add_option("--text-field", options.text_field, "field of a JSONL line that holds the text")
      ->capture_default_str();
  build
      ->add_option(
          "--heldout-ratio", options.heldout_ratio, "share of documents kept for evaluation")
      ->capture_default_str();
  build->add_option("--max-mb",
                    arguments->max_mb,
                    "take this much text, files in the order of a hash of their path; 0: take all");
  build->add_option("--seed", options.seed, "of the order of documents and of the split")
      ->capture_default_str();
  build->add_flag("--fresh", options.replace, "an older dataset at --out gives way");
  build->callback([arguments, &globals] { run_build(*arguments, globals); });

  auto dir = std::make_shared<std::string>();
  CLI::App* inspect = add_command(*group,
                                  globals,
                                  "inspect",
                                  "what a dataset holds, with its hashes checked",
                                  "  pelago data inspect runs/data/headers\n");
  inspect->add_option("dataset", *dir, "the folder of `pelago data build`")->required();
  inspect->callback([dir, &globals] { run_inspect(*dir, globals); });
}

}  // namespace pelago::cli
