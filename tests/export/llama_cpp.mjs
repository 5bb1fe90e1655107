// What llama.cpp makes of a GGUF file: node llama_cpp.mjs FILE TOKENS PROMPT..., a line of JSON.
import {getLlama, GgmlType} from "node-llama-cpp";

const [file, count, ...prompts] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: file});
const {bos, eos, shouldPrependBosToken: begins} = model.tokens;
const exact = {experimentalKvCacheKeyType: GgmlType.F32, experimentalKvCacheValueType: GgmlType.F32};
const context = await model.createContext({contextSize: 128, threads: 1, flashAttention: false, ...exact});
const sequence = context.getSequence();
const texts = [];
for (const prompt of prompts) {
    const ids = model.tokenize(prompt), chosen = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(begins ? [bos, ...ids] : ids, {temperature: 0})) {
        chosen.push(token);
        if (chosen.length >= Number(count)) break;
    }
    texts.push({ids, chosen, text: model.detokenize(chosen)});
}
console.log(JSON.stringify({bos, eos, begins, texts, template: model.fileInfo.metadata.tokenizer?.chat_template ?? ""}));
process.exit(0);
