// llama.cpp through node-llama-cpp: node decode_llama.mjs FOLDER MODEL.gguf ROWS PROMPT NEW
// FOLDER holds node_modules. For each line of standard input all rows continue their prompts by NEW tokens, greedily;
// a JSON line answers: the first row's tokens, seconds and CPU seconds of the steps after the first.
import {createInterface} from "node:readline";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, model, ...numbers] = process.argv.slice(2);
const [rows, prompt, many] = numbers.map(Number);
const {getLlama} = await import(pathToFileURL(join(folder, "node_modules/node-llama-cpp/dist/index.js")));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const loaded = await llama.loadModel({modelPath: model});
const contextSize = prompt + many + 8;
const context = await loaded.createContext({contextSize, sequences: rows, threads: 1, batchSize: rows * prompt});
const sequences = Array.from({length: rows}, () => context.getSequence());

async function continued(row, times) {
    const tokens = [], start = Array.from({length: prompt}, (_, i) => 400 + i + row);
    for await (const token of sequences[row].evaluate(start, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        times.push([Number(process.hrtime.bigint()) / 1e9, process.cpuUsage()]);
        if (tokens.length >= many) break;
    }
    return tokens;
}

console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
    for (const sequence of sequences) await sequence.clearHistory();
    const times = [];  // of the first row: a step makes one token of each
    const tokens = await Promise.all(sequences.map((_, row) => continued(row, row ? [] : times)));
    const walls = times.slice(2).map((one, i) => one[0] - times[i + 1][0]);
    const cpus = times.slice(2).map((one, i) => {
        const before = times[i + 1][1];
        return (one[1].user + one[1].system - before.user - before.system) / 1e6;
    });
    console.log(JSON.stringify({walls, cpus, tokens: tokens[0]}));
}
process.exit(0);
